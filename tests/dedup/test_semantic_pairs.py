"""Vectors, k-means and pairs above a cosine: blocks and clusters against all pairs at once."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_engine.dedup.components import connected_components
from data_engine.dedup.cosine_pairs import join_similar, pairs_above
from data_engine.dedup.hash_clusters import HashClusters
from data_engine.dedup.kmeans import assign, choose_k, fit_centroids
from data_engine.dedup.vectors import Vectors, reordered
from data_engine.errors import DatasetError

ROUNDING = 1e-5


def unit(rng, count, dim=6):
    vectors = rng.normal(size=(count, dim)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def brute_force(vectors, cosine):
    left, right = np.nonzero(np.triu(vectors @ vectors.T > cosine, 1))
    return set(zip(left.tolist(), right.tolist(), strict=True))


@given(st.integers(0, 60), st.integers(1, 70), st.floats(0.05, 0.99), st.integers(0, 2**32 - 1))
def test_blocks_find_what_all_pairs_at_once_do(count, block, cosine, seed):
    vectors = unit(np.random.default_rng(seed), count)
    found = [
        pair for some in pairs_above(vectors, cosine, block) for pair in zip(*(x.tolist() for x in some), strict=True)
    ]
    assert len(found) == len(set(found))
    assert brute_force(vectors, cosine + ROUNDING) <= set(found) <= brute_force(vectors, cosine - ROUNDING)


@given(st.integers(1, 50), st.integers(1, 5), st.integers(0, 2**32 - 1))
def test_components_are_those_of_the_pairs_within_clusters(count, k, seed):
    rng = np.random.default_rng(seed)
    vectors, clusters = unit(rng, count, dim=3), np.sort(rng.integers(0, k, count))
    joined = join_similar(vectors, clusters, 0.9)
    pairs = [(i, j) for i, j in brute_force(vectors, 0.9) if clusters[i] == clusters[j]]
    nodes, labels = connected_components(*np.array(pairs, np.uint64).reshape(-1, 2).T)
    assert tuple(found.tolist() for found in joined) == (nodes.tolist(), labels.tolist())


def test_the_work_of_a_cluster_does_not_grow_with_the_number_of_clusters(monkeypatch):
    largest = 0

    class Watched(HashClusters):
        def add(self, left, right):
            nonlocal largest
            super().add(left, right)
            largest = max(largest, len(self.hashes))

    monkeypatch.setattr("data_engine.dedup.cosine_pairs.HashClusters", Watched)
    vectors = np.ones((400, 1), np.float32)
    rows, labels = join_similar(vectors, np.repeat(np.arange(100), 4), 0.9)
    assert largest == 4
    assert (rows.tolist(), labels.tolist()) == (list(range(400)), np.repeat(np.arange(0, 400, 4), 4).tolist())


def test_k_grows_with_the_count():
    assert [choose_k(count) for count in (0, 1, 4096, 4097, 1_000_000)] == [1, 1, 1, 2, 245]


def test_centroids_find_groups_that_lie_apart_and_are_the_same_again():
    rng = np.random.default_rng(0)
    groups = np.repeat(np.eye(4, dtype=np.float32), 50, axis=0) + 0.05 * rng.normal(size=(200, 4)).astype(np.float32)
    vectors = groups / np.linalg.norm(groups, axis=1, keepdims=True)
    centroids = fit_centroids(vectors, 4, seed=3)
    assert np.array_equal(centroids, fit_centroids(vectors, 4, seed=3))
    np.testing.assert_allclose(np.linalg.norm(centroids, axis=1), 1, atol=1e-5)
    found = assign(vectors, centroids).reshape(4, 50)
    assert all(len(set(group)) == 1 for group in found.tolist())


def test_vectors_are_centered_on_those_that_are_there(tmp_path):
    vectors = Vectors(["a", "b", "c", "d"], tmp_path / "v")
    assert vectors.add(["d", "unknown"], np.array([[0, 2], [9, 9]], np.float32)) == 1
    assert vectors.add(["a", "d"], np.array([[4, 2], [7, 7]], np.float32)) == 1
    assert vectors.add(["c"], np.array([[2, 2]], np.float32)) == 1
    assert vectors.absent() == {"b"}
    ids, matrix = vectors.centered(tmp_path / "w")
    assert ids == ["a", "c", "d"]
    assert matrix.tolist() == [[1, 0], [0, 0], [-1, 0]]  # c is the mean: no direction
    assert reordered(matrix, np.array([2, 0, 1]), tmp_path / "x").tolist() == [[-1, 0], [1, 0], [0, 0]]
    with pytest.raises(DatasetError, match="of 3 and of 2 numbers"):
        vectors.add(["b"], np.zeros((1, 3), np.float32))


def test_no_vectors_at_all(tmp_path):
    assert Vectors(["a"], tmp_path / "v").centered(tmp_path / "w")[0] == []
