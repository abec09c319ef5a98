"""Bins of stability and predicted IoU, and how many masks of a run fall into each."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from data_engine.errors import DatasetError, UsageError

SCORES = ("stability", "iou")
COLUMNS = {"stability": "stability_score", "iou": "predicted_iou"}

_LOWEST, _HIGHEST = -1000, 2000  # thousandths; what lies outside counts as the outermost


def thousandths(scores: np.ndarray) -> np.ndarray:
    """float32 scores -> int64, rounded down; 0.95 is 950, though its float32 is a little less."""
    return np.clip(np.floor(scores.astype(np.float64) * 1000 + 1e-4), _LOWEST, _HIGHEST).astype(np.int64)


class ScoreHistogram:
    """Masks by stability and predicted IoU, in thousandths: no larger for more masks, and added up in any order."""

    def __init__(self) -> None:
        self._counts: dict[int, int] = {}

    def add(self, stability: np.ndarray, iou: np.ndarray) -> None:
        """float32 scores of some masks."""
        span = _HIGHEST - _LOWEST + 1
        codes, counts = np.unique(
            (thousandths(stability) - _LOWEST) * span + thousandths(iou) - _LOWEST, return_counts=True
        )
        for code, count in zip(codes.tolist(), counts.tolist(), strict=True):
            self._counts[code] = self._counts.get(code, 0) + count

    @property
    def masks(self) -> int:
        return sum(self._counts.values())

    def _points(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(stability, iou, masks) of every pair of values that occurs."""
        span = _HIGHEST - _LOWEST + 1
        codes = np.fromiter(self._counts.keys(), np.int64, len(self._counts))
        masks = np.fromiter(self._counts.values(), np.int64, len(self._counts))
        return codes // span + _LOWEST, codes % span + _LOWEST, masks

    def bins(self, count: int, stability_edges: Iterable[float] = (), iou_edges: Iterable[float] = ()) -> ScoreBins:
        """Bins with these edges, or `count` bins of each score with about as many masks each."""
        stability, iou, masks = self._points()
        if not len(masks):
            raise DatasetError("there are no masks to draw from")
        return ScoreBins(
            stability=checked_edges(stability_edges, "stability") or _quantiles(stability, masks, count),
            iou=checked_edges(iou_edges, "predicted IoU") or _quantiles(iou, masks, count),
        )

    def cells(self, bins: ScoreBins) -> list[list[int]]:
        """Masks by [stability bin][IoU bin]."""
        stability, iou, masks = self._points()
        table = np.zeros((len(bins.stability) + 1, len(bins.iou) + 1), np.int64)
        np.add.at(table, (_which(stability, bins.stability), _which(iou, bins.iou)), masks)
        counts: list[list[int]] = table.tolist()
        return counts


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreBins:
    """The inner edges of the bins, ascending, in whole thousandths. A score on an edge is in the upper bin."""

    stability: tuple[float, ...]
    iou: tuple[float, ...]

    def of(self, stability: np.ndarray, iou: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """float32 scores -> the numbers of their bins."""
        return _which(thousandths(stability), self.stability), _which(thousandths(iou), self.iou)

    def labels(self, score: str) -> list[str]:
        """What the bins of "stability" or "iou" are called, lowest first."""
        edges = [f"{edge:g}" for edge in getattr(self, score)]
        if not edges:
            return ["all"]
        between = [f"{low}-{high}" for low, high in pairwise(edges)]
        return [f"< {edges[0]}", *between, f">= {edges[-1]}"]


def checked_edges(edges: Iterable[float], score: str) -> tuple[float, ...]:
    """Edges in whole thousandths. Raises UsageError unless they ascend."""
    rounded = tuple(round(edge, 3) for edge in edges)
    if list(rounded) != sorted(set(rounded)):
        raise UsageError(f"edges of {score} {', '.join(map(str, rounded))}: they must ascend")
    return rounded


def _which(values: np.ndarray, edges: tuple[float, ...]) -> np.ndarray:
    return np.searchsorted(np.round(np.array(edges) * 1000).astype(np.int64), values, side="right")


def _quantiles(values: np.ndarray, masks: np.ndarray, count: int) -> tuple[float, ...]:
    """Edges that leave about as many masks in each of `count` bins, and none empty."""
    levels, where = np.unique(values, return_inverse=True)
    below = np.concatenate([[0], np.cumsum(np.bincount(where, weights=masks))])[:-1]  # masks below each level
    wanted = masks.sum() * np.arange(1, count) / count
    nearest = [int(np.abs(below - share).argmin()) for share in wanted]
    return tuple(float(levels[i]) / 1000 for i in sorted(set(nearest) - {0}))
