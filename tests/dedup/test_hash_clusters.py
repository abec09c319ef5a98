"""Clusters are the connected components, in whatever order and however often the pairs come."""

import networkx as nx
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from data_engine.dedup.components import connected_components
from data_engine.dedup.hash_clusters import HashClusters

PAIRS = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)).filter(lambda pair: pair[0] != pair[1]), max_size=40)


def expected(pairs):
    components = nx.connected_components(nx.Graph(pairs))
    return {node: min(component) for component in components for node in component}


def arrays(pairs):
    pairs = np.array(pairs, np.uint64).reshape(-1, 2)
    return pairs[:, 0], pairs[:, 1]


@given(PAIRS)
def test_components_equal_those_of_networkx(pairs):
    nodes, labels = connected_components(*arrays(pairs))
    assert dict(zip(nodes.tolist(), labels.tolist(), strict=True)) == expected(pairs)


@given(PAIRS, st.integers(1, 5))
def test_clusters_that_grow_end_the_same(pairs, at_once):
    clusters = HashClusters()
    for start in range(0, len(pairs), at_once):
        clusters.add(*arrays(pairs[start : start + at_once]))
    assert dict(zip(clusters.hashes.tolist(), clusters.labels.tolist(), strict=True)) == expected(pairs)
    assert clusters.labels_of(np.array([99], np.uint64)).tolist() == [99]


def test_a_long_chain_is_one_component():
    chain = np.random.default_rng(0).permutation(20_000).astype(np.uint64)
    nodes, labels = connected_components(chain[:-1], chain[1:])
    assert len(nodes) == 20_000
    assert not labels.any()
