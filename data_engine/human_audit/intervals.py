"""Confidence intervals of a proportion.

Wilson (1927), "Probable inference, the law of succession, and statistical inference", J. Am. Stat. Assoc. 22:209-212:
the score interval, which keeps its coverage near 0 and 1 and for small samples.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Interval:
    low: float
    high: float

    @property
    def width(self) -> float:
        return self.high - self.low


def normal_quantile(confidence: float = CONFIDENCE) -> float:
    """1.96 for 0.95: a standard normal is within so much of 0 with probability `confidence`."""
    return NormalDist().inv_cdf((1 + confidence) / 2)


def t_quantile(degrees: int, confidence: float = CONFIDENCE) -> float:
    """The same for Student's t with `degrees` >= 1 degrees of freedom, to within 0.5 %.

    Exact for 1 and 2; from 3 on the expansion of Abramowitz & Stegun (1964), 26.7.5.
    """
    tail = (1 + confidence) / 2
    if degrees == 1:
        return math.tan(math.pi * (tail - 0.5))
    if degrees == 2:
        return (2 * tail - 1) / math.sqrt(2 * tail * (1 - tail))
    z = normal_quantile(confidence)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / degrees ** (power + 1) for power, term in enumerate(terms))


def wilson(share: float, n: float, quantile: float | None = None) -> Interval:
    """The score interval of a proportion seen as `share` in `n` draws.

    n may be a fraction (an effective sample size), infinite (everything was seen: no width) or 0 (nothing known).
    """
    if n <= 0:
        return Interval(0.0, 1.0)
    if math.isinf(n):
        return Interval(share, share)
    z = normal_quantile() if quantile is None else quantile
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    # The share itself is always inside; rounding alone could leave it out at 0 and 1.
    return Interval(min(max(centre - half, 0.0), share), max(min(centre + half, 1.0), share))


def draws_with_replacement(n: int, population: int) -> float:
    """How many draws with replacement say as much as `n` without, of `population`.

    The variance of a share is p(1-p)/n * (N-n)/(N-1) (Cochran 1977, Sampling Techniques, 3rd ed., theorem 3.2), so that
    the score interval with n(N-1)/(N-n) inverts the very test that fits the draw.
    """
    return math.inf if n >= population else n * (population - 1) / (population - n)
