"""Distributions from counts in fine bins: exact where values are whole numbers, and always in little memory.

DuckDB scans the column once and returns a few thousand bins at most, each with its count, least, largest and sum. All
of them are whole numbers or extremes, so the figures do not depend on the order in which threads add.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import duckdb

QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
_MOST_BARS = 48
_MICRO = 1_000_000  # fractions are summed as millionths, in whole numbers
PER_DECADE = 10  # bars of a logarithmic axis


@dataclass(frozen=True, slots=True)
class Measure:
    """A column of the dataset, and how it is binned."""

    key: str
    title: str
    axis: str
    table: str
    column: str
    bins: int  # fine bins a unit; a decade where logarithmic
    counted: str  # what a row is
    log: bool = False
    whole: bool = False
    where: str = "true"


MEASURES = (
    Measure(
        "masks_per_image", "Masks per image", "masks", "images", "n_masks", 1, "images", whole=True,
        where="status = 'ok'",
    ),
    Measure("area", "Mask area", "pixels (logarithmic)", "masks", "area", 200, "masks", log=True, whole=True),
    Measure("predicted_iou", "Predicted IoU", "predicted IoU", "masks", "predicted_iou", 1000, "masks"),
    Measure("stability_score", "Stability score", "stability score", "masks", "stability_score", 1000, "masks"),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class FineBin:
    number: int
    count: int
    least: float
    largest: float


@dataclass(frozen=True, slots=True)
class Distribution:
    """All values of a measure: fine bins in order, and their exact sum."""

    measure: Measure
    fine: tuple[FineBin, ...]
    total: float

    @property
    def count(self) -> int:
        return sum(bin.count for bin in self.fine)

    def quantile(self, share: float) -> float:
        """Value below which `share` of the rows lie: exact to the fine bin, interpolated within its extremes."""
        rank = share * (self.count - 1)
        ends = list(accumulate(bin.count for bin in self.fine))
        found = self.fine[bisect_left(ends, math.floor(rank) + 1)]
        if found.count == 1 or found.least == found.largest:
            return found.least
        before = ends[self.fine.index(found)] - found.count
        inside = min((rank - before) / (found.count - 1), 1.0)
        value = found.least + inside * (found.largest - found.least)
        return round(value) if self.measure.whole else value

    def summary(self) -> dict[str, float | int | None]:
        """count, mean, min, p1 … p99, max; None where there are no rows. Fractions have six digits."""
        if not self.fine:
            return {"count": 0, "mean": None, "min": None, **{_name(q): None for q in QUANTILES}, "max": None}
        values = {
            "mean": self.total / self.count,
            "min": self.fine[0].least,
            **{_name(q): self.quantile(q) for q in QUANTILES},
            "max": self.fine[-1].largest,
        }
        return {"count": self.count, **{name: _rounded(value) for name, value in values.items()}}


@dataclass(frozen=True, slots=True)
class Bars:
    """A histogram to show: `edges` are one more than the counts of each distribution."""

    edges: tuple[float, ...]
    counts: tuple[tuple[int, ...], ...]  # of each distribution
    log: bool = False
    whole: bool = False  # a bar from 4 to 5 holds the fours

    def as_json(self, side: int = 0) -> list[dict[str, float | int]]:
        return [
            {"from": _rounded(low), "to": _rounded(high), "count": count}
            for low, high, count in zip(self.edges, self.edges[1:], self.counts[side], strict=False)
        ]


def read_distribution(connection: duckdb.DuckDBPyConnection, measure: Measure) -> Distribution:
    """One scan of one column."""
    value = f"greatest({measure.column}, 1)" if measure.log else measure.column
    position = f"log10({value}) * {measure.bins}" if measure.log else f"{value}::double * {measure.bins}"
    unit = 1 if measure.whole else _MICRO
    rows = connection.execute(
        f"select cast(floor({position}) as int) as bin, count(*), min({measure.column}), max({measure.column}), "  # noqa: S608 - names are of MEASURES
        f"sum(cast(round({measure.column}::double * {unit}) as bigint)) "
        f"from {measure.table} where {measure.where} and isfinite({measure.column}::double) group by bin order by bin"
    ).fetchall()
    fine = tuple(FineBin(number, count, least, largest) for number, count, least, largest, _ in rows)
    return Distribution(measure, fine, sum(int(row[4]) for row in rows) / unit)


def bars(distributions: Sequence[Distribution]) -> Bars:
    """Histograms over the same edges, round numbers, at most 48 bars."""
    measure = distributions[0].measure
    numbers = [bin.number for distribution in distributions for bin in distribution.fine]
    first, last = (min(numbers), max(numbers)) if numbers else (0, 0)
    width = measure.bins // PER_DECADE if measure.log else _bar_width(last - first + 1)
    start = first // width
    size = last // width - start + 1
    counts = []
    for distribution in distributions:
        of_bars = [0] * size
        for bin in distribution.fine:
            of_bars[bin.number // width - start] += bin.count
        counts.append(tuple(of_bars))
    edges = [(start + i) * width / measure.bins for i in range(size + 1)]
    return Bars(tuple(10**edge if measure.log else edge for edge in edges), tuple(counts), measure.log, measure.whole)


def as_json(distribution: Distribution) -> dict[str, Any]:
    histogram = bars([distribution]).as_json() if distribution.fine else []
    return {**distribution.summary(), "histogram": histogram}


def _bar_width(fine_bins: int) -> int:
    """1, 2, 5, 10, 20, … fine bins, so that there are not too many bars."""
    width = next(
        factor * 10**power
        for power in range(12)
        for factor in (1, 2, 5)
        if fine_bins <= _MOST_BARS * factor * 10**power
    )
    return int(width)


def _name(share: float) -> str:
    return f"p{round(share * 100)}"


def _rounded(value: float) -> float | int:
    return value if isinstance(value, int) else round(value, 6)
