"""Pairs of vectors above a cosine, within clusters, block by block."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from data_engine.dedup.hash_clusters import HashClusters

_BLOCK = 1024  # rows: one block's products are 4 MiB


def pairs_above(vectors: np.ndarray, cosine: float, block: int = _BLOCK) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """NxC float32 of length 1 -> rows (i, j), i < j, each pair once, whose product exceeds `cosine`.

    Memory: block x block products, never N x N.
    """
    for first in range(0, len(vectors), block):
        rows = np.asarray(vectors[first : first + block])
        for second in range(first, len(vectors), block):
            left, right = np.nonzero(rows @ np.asarray(vectors[second : second + block]).T > cosine)
            if first == second:
                above = left < right
                left, right = left[above], right[above]
            if len(left):
                yield left + first, right + second


def join_similar(
    vectors: np.ndarray, clusters: np.ndarray, cosine: float, on_rows: Callable[[int], None] = lambda done: None
) -> tuple[np.ndarray, np.ndarray]:
    """Rows that chains of pairs above `cosine` link, ascending, and the first row of each one's component, N uint64.

    vectors: NxC, the rows of a cluster one after the other. clusters: the cluster of each row, N, ascending.
    """
    rows, labels = [np.empty(0, np.uint64)], [np.empty(0, np.uint64)]
    _, starts = np.unique(clusters, return_index=True)
    for start, stop in zip(starts, [*starts[1:], len(clusters)], strict=True):
        joined = HashClusters()  # of its own: adding a pair costs as much as is in there
        for left, right in pairs_above(vectors[start:stop], cosine):
            joined.add(left.astype(np.uint64), right.astype(np.uint64))
        rows.append(joined.hashes + np.uint64(start))
        labels.append(joined.labels + np.uint64(start))
        on_rows(int(stop))
    return np.concatenate(rows), np.concatenate(labels)
