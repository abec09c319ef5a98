"""Clusters of hashes that grow pair by pair."""

from __future__ import annotations

import numpy as np

from data_engine.dedup.components import connected_components


class HashClusters:
    """Hashes that have a neighbour, and the cluster of each.

    hashes: uint64, sorted; labels: uint64, the smallest hash of each one's cluster. Memory: 16 bytes a hash that has a
    neighbour, and about 100 bytes a new pair while it is added.
    """

    def __init__(self) -> None:
        self.hashes = np.empty(0, np.uint64)
        self.labels = np.empty(0, np.uint64)

    def labels_of(self, hashes: np.ndarray) -> np.ndarray:
        """The label of each hash; itself for one without a neighbour."""
        return _mapped(hashes, self.hashes, self.labels)

    def add(self, left: np.ndarray, right: np.ndarray) -> None:
        """Joins left[i] with right[i], hashes or labels."""
        left_label, right_label = self.labels_of(left), self.labels_of(right)
        news = left_label != right_label
        if not news.any():
            return
        old, new = connected_components(left_label[news], right_label[news])
        known = _mapped(self.labels, old, new)
        ends = np.unique(np.concatenate([left[news], right[news]]))
        fresh = ends[~self._has(ends)]
        place = np.searchsorted(self.hashes, fresh)
        self.hashes = np.insert(self.hashes, place, fresh)
        self.labels = np.insert(known, place, _mapped(fresh, old, new))

    def _has(self, hashes: np.ndarray) -> np.ndarray:
        if not len(self.hashes):
            return np.zeros(len(hashes), bool)
        return self.hashes[np.searchsorted(self.hashes, hashes).clip(max=len(self.hashes) - 1)] == hashes


def _mapped(values: np.ndarray, keys: np.ndarray, results: np.ndarray) -> np.ndarray:
    """results[i] where a value is keys[i], which are sorted; else the value."""
    if not len(keys):
        return values
    place = np.searchsorted(keys, values).clip(max=len(keys) - 1)
    return np.where(keys[place] == values, results[place], values)
