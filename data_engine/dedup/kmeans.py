"""k-means on vectors of length 1, to compare each image only with those of its cluster (SemDeDup, arXiv 2303.09540)."""

from __future__ import annotations

import numpy as np

IMAGES_PER_CLUSTER = 4096

_ITERATIONS = 10
_SAMPLE_PER_CLUSTER = 40
_SMALLEST_SAMPLE = 100_000
_ROWS = 8192


def choose_k(count: int) -> int:
    """So many clusters that finding an image's cluster costs about what comparing within it does; 1 for a small set."""
    return max(1, -(-count // IMAGES_PER_CLUSTER))


def fit_centroids(vectors: np.ndarray, k: int, seed: int = 0) -> np.ndarray:
    """NxC float32 of length 1 -> kxC centroids of length 1, fitted to a sample. The same for the same seed and rows."""
    rng = np.random.default_rng(seed)
    size = min(len(vectors), max(_SMALLEST_SAMPLE, k * _SAMPLE_PER_CLUSTER))
    sample = np.asarray(vectors[np.sort(rng.choice(len(vectors), size, replace=False))])
    centroids = sample[np.sort(rng.choice(size, k, replace=False))]
    for _ in range(_ITERATIONS if k > 1 else 0):
        nearest = assign(sample, centroids)
        order = np.argsort(nearest, kind="stable")
        found, starts = np.unique(nearest[order], return_index=True)
        sums = np.add.reduceat(sample[order], starts, axis=0)
        lengths = np.linalg.norm(sums, axis=1, keepdims=True)
        # A cluster that lost all its rows, or whose rows cancel out, keeps its centroid.
        updated = centroids.copy()
        updated[found] = np.where(lengths > 0, sums / np.where(lengths > 0, lengths, 1), centroids[found])
        if np.array_equal(updated, centroids):
            break
        centroids = updated
    return centroids


def assign(vectors: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """The nearest centroid of each row by cosine, N int64; of equally near ones the first."""
    if len(centroids) == 1:
        return np.zeros(len(vectors), np.int64)
    nearest = [(vectors[start : start + _ROWS] @ centroids.T).argmax(axis=1) for start in range(0, len(vectors), _ROWS)]
    return np.concatenate(nearest) if nearest else np.empty(0, np.int64)
