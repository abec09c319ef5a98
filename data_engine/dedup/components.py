"""Clusters from pairs: the connected components of a graph, in NumPy."""

from __future__ import annotations

import numpy as np


def connected_components(left: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Edges as two arrays of nodes (uint64, length E) -> (nodes N sorted, smallest node of each one's component N).

    The larger of two roots hooks onto the smaller one, then paths are halved until all are flat; the rounds grow with
    the logarithm of the longest chain. Memory: about 60 bytes an edge.
    """
    nodes, index = np.unique(np.concatenate([left, right]), return_inverse=True)
    label = np.arange(len(nodes))
    x, y = index[: len(left)], index[len(left) :]
    while len(x):
        x, y = label[x], label[y]
        open_ = x != y
        x, y = x[open_], y[open_]
        np.minimum.at(label, np.maximum(x, y), np.minimum(x, y))
        while not np.array_equal(shorter := label[label], label):
            label = shorter
    return nodes, nodes[label]
