"""Hashes as photographs have them: 32 of 64 bits set, and neighbours of them."""

from __future__ import annotations

import numpy as np


def balanced(rng: np.random.Generator, count: int) -> np.ndarray:
    """uint64, length count."""
    order = rng.random((count, 64)).argsort(axis=1)
    return np.packbits(order < 32, axis=1).view(np.uint64)[:, 0]


def flipped(rng: np.random.Generator, hashes: np.ndarray, most: int) -> np.ndarray:
    """Each with 1 to `most` random bits flipped."""
    places = rng.random((len(hashes), 64)).argsort(axis=1)[:, :most].astype(np.uint64)
    bits = rng.integers(1, most + 1, len(hashes))
    changed = hashes.copy()
    for i in range(most):
        changed ^= np.where(i < bits, np.uint64(1) << places[:, i], np.uint64(0))
    return changed
