"""The embeddings of many images as one matrix in a file: memory holds what is being worked on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from data_engine.errors import DatasetError

_ROWS = 8192  # worked on at once


class Vectors:
    """A row for each of N ids, filled in any order. Memory: the ids, and a byte for each."""

    def __init__(self, ids: list[str], path: Path) -> None:
        self.ids = ids
        self.present = np.zeros(len(ids), bool)
        self._rows = {image_id: row for row, image_id in enumerate(ids)}
        self._path = path
        self._matrix: np.memmap | None = None

    def add(self, ids: list[str], values: np.ndarray) -> int:
        """values: BxC float32. Ids that are unknown or filled already are passed over. Returns how many are new.

        Raises DatasetError for rows of another length than those before.
        """
        places = np.array([self._rows.get(image_id, -1) for image_id in ids], np.int64)
        new = places >= 0
        new[new] = ~self.present[places[new]]
        if not new.any():
            return 0
        if self._matrix is None:
            self._matrix = np.memmap(self._path, np.float32, "w+", shape=(len(self.ids), values.shape[1]))
        if values.shape[1] != self._matrix.shape[1]:
            raise DatasetError(f"embeddings of {values.shape[1]} and of {self._matrix.shape[1]} numbers for one model")
        self._matrix[places[new]] = values[new]
        self.present[places[new]] = True
        return int(new.sum())

    def absent(self) -> set[str]:
        return {image_id for image_id, present in zip(self.ids, self.present, strict=True) if not present}

    def centered(self, path: Path) -> tuple[list[str], np.ndarray]:
        """The ids that are filled, and their rows less the mean of all of them, of length 1: NxC float32 in `path`.

        A row that is the mean itself stays zero: it has no direction.
        """
        rows = np.flatnonzero(self.present)
        if self._matrix is None:
            return [], np.empty((0, 0), np.float32)
        matrix = self._matrix
        mean = np.sum([matrix[some].sum(axis=0, dtype=np.float64) for some in _some(rows)], axis=0) / len(rows)
        result = np.memmap(path, np.float32, "w+", shape=(len(rows), matrix.shape[1]))
        first = 0
        for some in _some(rows):
            moved = matrix[some] - mean
            lengths = np.linalg.norm(moved, axis=1, keepdims=True)
            # What rounding leaves of a row that is the mean has a direction of its own, which means nothing.
            zero = lengths <= 1e-6 * np.linalg.norm(matrix[some], axis=1, keepdims=True)
            result[first : first + len(some)] = np.where(zero, 0, moved / np.where(zero, 1, lengths))
            first += len(some)
        return [self.ids[row] for row in rows], result


def reordered(matrix: np.ndarray, order: np.ndarray, path: Path) -> np.ndarray:
    """matrix[order], in a file: what is worked on together lies together."""
    result = np.memmap(path, matrix.dtype, "w+", shape=matrix.shape)
    first = 0
    for some in _some(order):
        result[first : first + len(some)] = matrix[some]
        first += len(some)
    return result


def _some(rows: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(rows), _ROWS):
        yield rows[start : start + _ROWS]
