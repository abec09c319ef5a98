"""Confidence intervals against scipy, and at their ends."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from data_engine.human_audit.intervals import draws_with_replacement, normal_quantile, t_quantile, wilson
from data_engine.human_audit.sizes import masks_needed, table


@given(st.integers(1, 5000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_is_the_score_interval_of_scipy(counts):
    accepted, n = counts
    expected = stats.binomtest(accepted, n).proportion_ci(method="wilson")
    found = wilson(accepted / n, n)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert found.low <= accepted / n <= found.high


def test_nothing_seen_and_everything_seen():
    assert (wilson(0.5, 0).low, wilson(0.5, 0).high) == (0, 1)
    everything = wilson(0.25, draws_with_replacement(40, 40))
    assert (everything.low, everything.high) == (0.25, 0.25)
    assert draws_with_replacement(100, 10**9) == pytest.approx(100, rel=1e-6)
    assert draws_with_replacement(50, 100) == pytest.approx(99)  # half of the run seen: half of the variance


@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.99])
@pytest.mark.parametrize("degrees", [1, 2, 3, 5, 12, 200])
def test_t_quantile_is_within_half_a_percent_of_scipy(degrees, confidence):
    tolerance = 1e-9 if degrees < 3 else 0.005 if confidence < 0.99 else 0.02
    assert t_quantile(degrees, confidence) == pytest.approx(stats.t.ppf((1 + confidence) / 2, degrees), rel=tolerance)
    assert t_quantile(degrees, confidence) > normal_quantile(confidence)


def test_the_number_of_masks_needed_is_the_smallest_that_is_enough():
    for precision, width in ((0.9, 0.06), (0.5, 0.1), (0.98, 0.01)):
        n = masks_needed(precision, width)
        assert wilson(precision, n).width <= width < wilson(precision, n - 1).width
    assert math.isclose(masks_needed(0.5, 0.02), 9604, rel_tol=0.01)  # the textbook's 1.96^2 / 4 / 0.01^2
    assert table().count("\n") == 6
