"""How far two people agree: Cohen's kappa.

Cohen (1960), "A coefficient of agreement for nominal scales", Educational and Psychological Measurement 20:37-46.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any


@dataclass(frozen=True, slots=True)
class Agreement:
    """Of two people on the masks that both judged."""

    first: str
    second: str
    masks: int
    agreed: int
    kappa: float | None  # 1: always; 0: as often as by chance; None where chance alone would always agree


def cohens_kappa(pairs: Counter[tuple[str, str]]) -> float | None:
    """Kappa of a table of (verdict of one, verdict of the other) -> masks. None if it is not defined."""
    total = sum(pairs.values())
    if not total:
        return None
    first: Counter[str] = Counter()
    second: Counter[str] = Counter()
    for (one, other), count in pairs.items():
        first[one] += count
        second[other] += count
    observed = sum(count for (one, other), count in pairs.items() if one == other) / total
    expected = sum(first[verdict] * second[verdict] for verdict in first) / total**2
    return None if expected == 1 else (observed - expected) / (1 - expected)


def agreements(verdicts: Mapping[str, Mapping[Any, str]]) -> list[Agreement]:
    """Every two people who judged a mask in common. verdicts: person -> mask -> verdict."""
    found = []
    for one, other in combinations(sorted(verdicts), 2):
        common = verdicts[one].keys() & verdicts[other].keys()
        if common:
            pairs = Counter((verdicts[one][mask], verdicts[other][mask]) for mask in common)
            agreed = sum(count for (a, b), count in pairs.items() if a == b)
            found.append(Agreement(one, other, len(common), agreed, cohens_kappa(pairs)))
    return found
