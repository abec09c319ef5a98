"""Calibration of planted predictions."""

from __future__ import annotations

import numpy as np
import pytest

from data_engine.evaluation.calibration import calibration, spearman


def test_a_model_that_is_right_has_no_error():
    true = np.linspace(0, 1, 201)
    found = calibration(true, true)
    assert found.expected_error == pytest.approx(0)
    assert found.spearman == pytest.approx(1)
    assert sum(each.count for each in found.bins) == found.answers == 201


def test_an_over_confident_model_has_the_error_that_it_was_given():
    true = np.linspace(0, 0.7, 400)
    found = calibration(true + 0.25, true)
    assert found.expected_error == pytest.approx(0.25)
    assert found.mean_predicted - found.mean_true == pytest.approx(0.25)
    assert found.spearman == pytest.approx(1)  # and can still be sorted by
    full = [each for each in found.bins if each.count]
    assert all(each.predicted - each.true == pytest.approx(0.25) for each in full)
    assert found.bins[0].predicted is None


def test_predictions_outside_zero_to_one_count_in_the_end_bins():
    found = calibration(np.array([-0.5, 1.0, 1.5]), np.array([0.0, 1.0, 1.0]))
    assert [found.bins[0].count, found.bins[-1].count] == [1, 2]
    assert found.bins[-1].predicted == 1.25


def test_nothing_to_calibrate_is_none():
    assert calibration(np.empty(0), np.empty(0)) is None


def test_rank_correlation_with_ties_is_scipys():
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 6, (2, 100))
    assert spearman(a, b + a) == pytest.approx(stats.spearmanr(a, b + a).statistic)
    assert spearman(a, -a) == pytest.approx(-1)
    assert spearman(a, np.ones(100)) is None
