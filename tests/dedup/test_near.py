"""Every pair within the threshold is found: compared with all pairs, on random, similar and crowded hashes."""

import numpy as np
import pyarrow as pa
import pytest
from dedup.hash_sets import balanced, flipped

from data_engine.dedup import crowds
from data_engine.dedup.components import connected_components
from data_engine.dedup.near import cluster_hashes

duckdb = pytest.importorskip("duckdb")


def by_brute_force(hashes, threshold):
    rows, columns = np.triu_indices(len(hashes), 1)
    apart = np.unpackbits((hashes[rows] ^ hashes[columns])[:, None].view(np.uint8), axis=1).sum(1, dtype=int)
    near = apart <= threshold
    return connected_components(hashes[rows[near]], hashes[columns[near]])


def found_by_joins(hashes, threshold):
    with duckdb.connect() as connection:
        connection.execute("set threads = 1")
        connection.from_arrow(pa.table({"h": hashes})).create("hashes")
        return cluster_hashes(connection, threshold)


def hashes_with_neighbours(rng, most):
    """700 random hashes, a neighbour of each of 300, and 700 around one scene."""
    some = balanced(rng, 700)
    scene = np.repeat(balanced(rng, 1), 700)
    return np.unique(np.concatenate([some, flipped(rng, some[:300], most), flipped(rng, scene, 6)]))


@pytest.mark.parametrize("threshold", [2, 4, 6, 10])
def test_clusters_equal_those_of_all_pairs(threshold):
    hashes = hashes_with_neighbours(np.random.default_rng(threshold), threshold)
    nodes, labels = by_brute_force(hashes, threshold)
    compared = found_by_joins(hashes, threshold)
    assert compared.total == len(hashes)
    np.testing.assert_array_equal(compared.clusters.hashes, nodes)
    np.testing.assert_array_equal(compared.clusters.labels, labels)


@pytest.mark.parametrize("rounds", [1, 6])
def test_crowds_are_joined_exactly(monkeypatch, rounds):
    """Keys that 20 hashes share are crowded here, whatever the rounds of stars leave to the last join."""
    monkeypatch.setattr(crowds, "_CROWD", 20)
    monkeypatch.setattr(crowds, "_ROUNDS", rounds)
    rng = np.random.default_rng(1)
    hashes = hashes_with_neighbours(rng, 4)
    nodes, labels = by_brute_force(hashes, 4)
    clusters = found_by_joins(hashes, 4).clusters
    np.testing.assert_array_equal(clusters.hashes, nodes)
    np.testing.assert_array_equal(clusters.labels, labels)


def test_a_crowd_is_not_compared_pair_by_pair():
    """15,000 frames of one scene: 100 million pairs share nearly every key."""
    rng = np.random.default_rng(2)
    hashes = np.unique(flipped(rng, np.repeat(balanced(rng, 1), 15_000), 4))
    compared = found_by_joins(hashes, 4)
    assert len(compared.clusters.hashes) == len(hashes) > 5_000
    assert len(np.unique(compared.clusters.labels)) == 1


def test_equal_hashes_need_no_comparison():
    compared = found_by_joins(np.arange(100, dtype=np.uint64), 0)
    assert (compared.keys, len(compared.clusters.hashes)) == (0, 0)
