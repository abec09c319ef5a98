"""Which bits two hashes must share to be compared: no pair within the threshold is missed.

The 64 bits are cut into `bands` bands. Two hashes that differ in at most `threshold` bits differ in at most `threshold`
bands, so at least `bands - threshold` bands are equal (the pigeonhole principle). One key for each choice of so many
bands: every pair within the threshold shares at least one key whole. Recall is exact; the bands decide only the speed.
(Manku, Jain, Das Sarma: Detecting Near-Duplicates for Web Crawling, WWW 2007.)
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from math import comb

import numpy as np

HASH_BITS = 64

_MOST_KEYS = 1000
# In units of one row of a join (measured with benchmarks/dedup_scale.py):
_KEY_COST = 300_000  # a join with next to no rows
_PAIR_COST = 2.0  # a pair that is compared


def band_masks(bands: int) -> list[int]:
    """`bands` masks that share out the 64 bits. Neighbouring bits, which go together in pictures, go to other bands."""
    return [sum(1 << bit for bit in range(band, HASH_BITS, bands)) for band in range(bands)]


def key_masks(threshold: int, bands: int) -> list[int]:
    """The bits of every key: C(bands, threshold) masks; none for a threshold of 0. bands > threshold."""
    assert bands > threshold, (bands, threshold)
    if not threshold:
        return []  # different hashes differ in a bit
    return [sum(chosen) for chosen in combinations(band_masks(bands), bands - threshold)]


def choose_bands(sample: np.ndarray, total: int, threshold: int) -> int:
    """The number of bands that costs least: more bands make more keys, and fewer pairs a key.

    sample: some of the `total` distinct hashes, uint64; how crowded the keys are is counted in it.
    """
    if not threshold:
        return 1
    scale = (total / max(1, len(sample))) ** 2
    return cheapest_bands(lambda mask: scale * _pairs(sample, mask), total, threshold)[1]


def cheapest_bands(pairs: Callable[[int], float], total: int, threshold: int) -> tuple[float, int]:
    """(what comparing costs, in rows of a join; the number of bands that costs least). threshold: at least 1.

    pairs: how many pairs share a key, by its mask. total: rows of both sides of a join.
    """
    best: tuple[float, int] | None = None
    for bands in range(threshold + 1, HASH_BITS + 1):
        keys = comb(bands, threshold)
        joins = keys * (total + _KEY_COST)
        if best is not None and (keys > _MOST_KEYS or joins >= best[0]):
            break
        masks = key_masks(threshold, bands)
        tried = masks[:: max(1, len(masks) // 4)]
        cost = joins + _PAIR_COST * keys * sum(pairs(mask) for mask in tried) / len(tried)
        if best is None or cost < best[0]:
            best = cost, bands
    assert best is not None
    return best


def _pairs(hashes: np.ndarray, mask: int) -> float:
    _, counts = np.unique(hashes & np.uint64(mask), return_counts=True)
    counts = counts.astype(np.float64)
    return float((counts * (counts - 1)).sum() / 2)
