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
) -> HashClusters:
    """Rows that chains of pairs above `cosine` link, as components by number of row.

    vectors: NxC, the rows of a cluster one after the other. clusters: the cluster of each row, N, ascending.
    """
    joined = HashClusters()
    _, starts = np.unique(clusters, return_index=True)
    for start, stop in zip(starts, [*starts[1:], len(clusters)], strict=True):
        for left, right in pairs_above(vectors[start:stop], cosine):
            joined.add((left + start).astype(np.uint64), (right + start).astype(np.uint64))
        on_rows(int(stop))
    return joined
