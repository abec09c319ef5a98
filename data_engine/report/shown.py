"""Numbers as people read them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

_SUFFIXES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def short(value: float) -> str:
    """For axes: 1.5k, 20M, 0.85."""
    for size, suffix in _SUFFIXES:
        if abs(value) >= size:
            return f"{value / size:.4g}{suffix}"
    return f"{value:.4g}"


def number(value: Any) -> str:
    """Whole numbers in groups of three, fractions with four digits that matter; a dash where there is none."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        if not math.isfinite(value):
            return str(value)
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return str(value)


def size(count: float) -> str:
    """Bytes with a unit of 1,000."""
    for unit, suffix in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= unit:
            return f"{count / unit:.3g} {suffix}"
    return f"{count:.0f} bytes"


def duration(seconds: float) -> str:
    """12 s, 3 min 20 s, 5 h 10 min, 2 d 4 h."""
    whole = round(seconds)
    for unit, name, smaller, name_of_smaller in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= unit:
            rest = whole % unit // smaller
            return f"{whole // unit} {name}" + (f" {rest} {name_of_smaller}" if rest else "")
    return f"{seconds:.3g} s" if seconds < 10 else f"{whole} s"


def fraction(value: float | None) -> str:
    """With three digits: scores."""
    return "–" if value is None else f"{value:.3f}"


def moment(time: str) -> str:
    """ISO 8601 in UTC, without what says so."""
    return time.replace("T", " ").removesuffix("+00:00")


def difference(value: Any, base: Any, shown: Callable[[Any], str] = number) -> str:
    """Of `value` from `base`: +120 (+3.1 %), "" where there is none; for what is no number, whether they differ."""
    numbers = [each for each in (value, base) if isinstance(each, (int, float)) and not isinstance(each, bool)]
    if len(numbers) < 2:
        return "" if value == base else "differs"
    change = value - base
    if not change:
        return ""
    sign = "+" if change > 0 else "−"
    share = f" ({sign}{abs(100 * change / base):.1f} %)" if base else ""
    return f"{sign}{shown(abs(change))}{share}"
