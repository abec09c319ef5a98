"""Whether a predicted IoU can be believed (calibration) and sorted by (rank correlation)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Bin:
    """The answers whose predicted IoU is in [low, high); the last bin has its upper end too."""

    low: float
    high: float
    count: int
    predicted: float | None  # means; None where there is no answer
    true: float | None


@dataclass(frozen=True, slots=True)
class Calibration:
    answers: int
    mean_predicted: float
    mean_true: float
    expected_error: float  # mean of |predicted - true| of the bins, weighted by their counts
    spearman: float | None  # None where either is constant
    bins: tuple[Bin, ...]


def calibration(predicted: np.ndarray, true: np.ndarray, bins: int = 10) -> Calibration | None:
    """Predicted and true IoU, N each -> how they agree; None without answers.

    Predictions outside 0 to 1 count in the first or last bin, with the value they have.
    """
    if not len(predicted):
        return None
    predicted, true = np.asarray(predicted, np.float64), np.asarray(true, np.float64)
    place = np.clip((predicted * bins).astype(int), 0, bins - 1)
    found = []
    for number in range(bins):
        here = place == number
        means = (float(predicted[here].mean()), float(true[here].mean())) if here.any() else (None, None)
        found.append(Bin(number / bins, (number + 1) / bins, int(here.sum()), *means))
    gaps = [
        each.count * abs(each.predicted - each.true)
        for each in found
        if each.predicted is not None and each.true is not None
    ]
    return Calibration(
        answers=len(predicted),
        mean_predicted=float(predicted.mean()),
        mean_true=float(true.mean()),
        expected_error=sum(gaps) / len(predicted),
        spearman=spearman(predicted, true),
        bins=tuple(found),
    )


def spearman(a: np.ndarray, b: np.ndarray) -> float | None:
    """Correlation of the ranks, ties at their mean rank; None where either is constant."""
    ranks = _ranks(a), _ranks(b)
    if any(np.ptp(rank) == 0 for rank in ranks):
        return None
    return float(np.corrcoef(*ranks)[0, 1])


def _ranks(values: np.ndarray) -> np.ndarray:
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[place]
