"""How a sample is drawn: what the person asked for, and what became of it."""

from __future__ import annotations

import heapq
import re
from dataclasses import dataclass
from typing import Literal

from data_engine.errors import UsageError
from data_engine.human_audit.score_bins import SCORES

Unit = Literal["masks", "images"]
Allocation = Literal["equal", "proportional"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Design:
    """What decides a sample, together with the dataset. Two equal designs draw the same masks."""

    unit: Unit = "masks"
    """masks: drawn one by one. images: drawn whole, with all of their masks."""
    size: int = 400
    """How many masks, or images. All of them where there are fewer."""
    seed: int = 0
    stratify: tuple[str, ...] = ()
    """Scores whose bins are drawn from separately: none, stability, iou or both. Of masks only."""
    allocation: Allocation = "equal"
    """equal: as many masks from each stratum, so that rare bins are known too. proportional: as many as its share."""
    bins: int = 3
    """Bins of each score, holding about as many masks each, where no edges are given."""
    stability_edges: tuple[float, ...] = ()
    iou_edges: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.size < 1:
            raise UsageError(f"a sample of {self.size} {self.unit}: ask for at least 1")
        if self.seed < 0:
            raise UsageError(f"seed {self.seed}: it must not be negative")
        if self.bins < 1:
            raise UsageError(f"{self.bins} bins: ask for at least 1")
        unknown = set(self.stratify) - set(SCORES)
        if unknown:
            raise UsageError(f"cannot stratify by {', '.join(sorted(unknown))}: use {' or '.join(SCORES)}")
        if self.stratify and self.unit == "images":
            raise UsageError("bins are of masks: a sample of whole images cannot be stratified by them; use --masks")


@dataclass(frozen=True, slots=True, kw_only=True)
class StratumCount:
    """A part of the run that was drawn from on its own. A bin is None where the strata are not by that score."""

    stability_bin: int | None
    iou_bin: int | None
    population: int  # masks in the run
    sampled: int


def allocate(populations: list[int], size: int, allocation: Allocation) -> list[int]:
    """How many masks each stratum gives: `size` in all, no more than it has, and at least 2 where there are as many.

    Equal shares, or shares by size; what a small stratum cannot give, the others do.
    """
    least = 2 if size >= 2 * len(populations) else 0
    given = [min(least, population) for population in populations]
    weights = [population if allocation == "proportional" else 1 for population in populations]
    # The next mask comes from the stratum that would then have the least for its weight.
    queue = [((given[i] + 1) / weights[i], i) for i, population in enumerate(populations) if given[i] < population]
    heapq.heapify(queue)
    for _ in range(min(size, sum(populations)) - sum(given)):
        _, i = heapq.heappop(queue)
        given[i] += 1
        if given[i] < populations[i]:
            heapq.heappush(queue, ((given[i] + 1) / weights[i], i))
    return given


def checked_name(name: str) -> str:
    """The name of an audit, which is a folder's. Raises UsageError."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name):
        raise UsageError(f"{name!r} cannot name an audit: use letters, digits, '.', '_' and '-', up to 100")
    return name
