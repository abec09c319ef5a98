"""The share of accepted masks in a whole run, from a sample: one estimator for each way of drawing.

Strata (one stratum is a simple random sample): the weighted mean of the strata's shares (Cochran 1977, Sampling
Techniques, 3rd ed., theorem 5.1). Its interval puts the strata's Wilson intervals together with the method of variance
estimates recovery (Zou, Huang & Zhang 2009, "A note on confidence interval estimation for a linear function of binomial
proportions", Comput. Stat. Data Anal. 53:1080-1085): a stratum whose answers are all the same still adds its doubt, and
one stratum alone gives Wilson's interval.

Images drawn whole: the ratio of accepted masks to masks (Cochran, section 9A.1), with the variance of the jackknife
that leaves out one image at a time (Cochran, section 6.17). Its interval is Wilson's with the effective sample size
of Korn & Graubard (1998), "Confidence intervals for proportions with small expected number of positive counts
estimated from survey data", Survey Methodology 24:193-201, and Student's t, with the degrees of freedom that
Satterthwaite (1946), "An approximate distribution of estimates of variance components", Biometrics Bulletin
2:110-114, gives for images of these sizes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from data_engine.human_audit.intervals import (
    Interval,
    draws_with_replacement,
    normal_quantile,
    t_quantile,
    wilson,
)


@dataclass(frozen=True, slots=True)
class Stratum:
    """A part of the run, of which masks were drawn at random without replacement."""

    population: int  # masks in the run
    decided: int  # masks of it that were accepted or rejected
    accepted: float  # a mask that people disagree about counts for the share of them that accept it


@dataclass(frozen=True, slots=True)
class Estimate:
    """The share of accepted masks and its 95 % confidence interval. `share` is None where nothing was decided."""

    share: float | None
    interval: Interval
    decided: int  # masks that the estimate rests on
    population: int  # masks that it speaks of


def stratified(strata: Sequence[Stratum]) -> Estimate:
    """The estimate for all strata together.

    A stratum without a decided mask may be anything: the interval is widened by all of its weight, and the share is
    that of the others.
    """
    population = sum(stratum.population for stratum in strata)
    seen = [stratum for stratum in strata if stratum.decided and stratum.population]
    decided = sum(stratum.decided for stratum in seen)
    if not seen:
        return Estimate(None, Interval(0.0, 1.0), 0, population)
    known = sum(stratum.population for stratum in seen)
    share, below, above = 0.0, 0.0, 0.0
    for stratum in seen:
        weight = stratum.population / known
        own = min(stratum.accepted / stratum.decided, 1.0)
        limits = wilson(own, draws_with_replacement(stratum.decided, stratum.population))
        share += weight * own
        below += (weight * (own - limits.low)) ** 2
        above += (weight * (limits.high - own)) ** 2
    covered = known / population
    interval = Interval(
        covered * (share - math.sqrt(below)),
        covered * (share + math.sqrt(above)) + (1 - covered),
    )
    return Estimate(share, Interval(max(interval.low, 0.0), min(interval.high, 1.0)), decided, population)


def clustered(
    accepted: Sequence[float], decided: Sequence[int], sizes: Sequence[int], images: int, population: int
) -> Estimate:
    """The estimate from images that were drawn at random and judged whole.

    accepted, decided, sizes: masks of each drawn image, by position. images, population: images with masks in the run,
    and their masks. Where some masks of an image are not decided, the decided ones speak for them; an image without a
    decided mask counts as not drawn.
    """
    of_images = np.array([accepted, decided, sizes], float).reshape(3, -1)
    of_images = of_images[:, of_images[1] > 0]
    drawn, total = of_images.shape[1], int(of_images[1].sum())
    if not drawn:
        return Estimate(None, Interval(0.0, 1.0), 0, population)
    size = of_images[2]
    good = size * of_images[0] / of_images[1]
    share = float(min(good.sum() / size.sum(), 1.0))
    if drawn >= images and total >= size.sum():
        return Estimate(share, Interval(share, share), total, population)
    if drawn == 1:
        return Estimate(share, Interval(0.0, 1.0), total, population)
    weight = size / size.sum()
    left_out = (good - share * size) / size.sum() / (1 - weight)  # the share's change without this image
    variance = (1 - min(drawn / images, 1)) * (drawn - 1) / drawn * float((left_out**2).sum())
    degrees = max(int((weight**2).sum() ** 2 / (weight**4).sum()) - 1, 1)
    shrink = (normal_quantile() / t_quantile(degrees)) ** 2
    return Estimate(share, wilson(share, shrink * _effective(share, variance, drawn, total)), total, population)


def _effective(share: float, variance: float, images: int, masks: int) -> float:
    """How many masks drawn one by one would say as much: at least as many as images, at most as many as were judged.

    Answers that are all the same cannot tell how alike the masks of an image are; then an image counts as one mask.
    """
    if variance <= 0:
        return float(images)
    return float(min(max(share * (1 - share) / variance, images), masks))
