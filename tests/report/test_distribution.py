"""Distributions: what the fine bins say is what numpy says of all values."""

from __future__ import annotations

import duckdb
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_engine.report.distribution import MEASURES, Distribution, as_json, bars, read_distribution

CONNECTION = duckdb.connect(config={"threads": 1})
FEW = settings(max_examples=25)
BY_KEY = {measure.key: measure for measure in MEASURES}
SCORES = st.lists(st.floats(-0.5, 1.5, width=32), min_size=1, max_size=60)
AREAS = st.lists(st.one_of(st.integers(0, 50), st.integers(0, 2**31 - 1)), min_size=1, max_size=60)


def read(key: str, values: list) -> Distribution:
    measure = BY_KEY[key]
    type = pa.int32() if measure.whole else pa.float32()
    table = pa.table({measure.column: pa.array(values, type), "status": ["ok"] * len(values)})
    CONNECTION.register(measure.table, table)
    return read_distribution(CONNECTION, measure)


@FEW
@given(SCORES)
def test_scores_are_summed_up_to_a_thousandth(values):
    told = read("predicted_iou", values).summary()
    exact = np.array(values, np.float32).astype(float)
    assert told["count"] == len(values)
    assert told["mean"] == pytest.approx(exact.mean(), abs=2e-6)
    assert (told["min"], told["max"]) == (pytest.approx(exact.min(), abs=1e-6), pytest.approx(exact.max(), abs=1e-6))
    for share in (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99):
        low, high = (np.quantile(exact, share, method=method) for method in ("lower", "higher"))
        assert low - 1.1e-3 <= told[f"p{round(100 * share)}"] <= high + 1.1e-3


@FEW
@given(AREAS)
def test_areas_are_summed_up_to_a_hundredth(values):
    told = read("area", values).summary()
    exact = np.array(values, float)
    assert told["mean"] == pytest.approx(exact.mean(), rel=1e-9, abs=1e-6)
    assert (told["min"], told["max"]) == (exact.min(), exact.max())
    for share in (0.05, 0.5, 0.95):
        low, high = (np.quantile(exact, share, method=method) for method in ("lower", "higher"))
        assert low * 0.985 - 1 <= told[f"p{round(100 * share)}"] <= high * 1.015 + 1


@FEW
@given(AREAS, AREAS)
def test_bars_hold_every_value_once_and_agree_on_their_edges(first, second):
    both = bars([read("area", first), read("area", second)])
    for values, counts in zip((first, second), both.counts, strict=True):
        assert sum(counts) == len(values)
    assert len(both.edges) == len(both.counts[0]) + 1 <= 110
    filled = [i for i, count in enumerate(both.counts[0]) if count]
    at_least_one = [max(1, value) for value in first]
    least, largest = min(at_least_one), max(at_least_one)
    assert both.edges[filled[0]] <= least * 1.001
    assert both.edges[filled[-1] + 1] >= largest * 0.999


@FEW
@given(st.lists(st.integers(0, 3000), min_size=1, max_size=60))
def test_counts_of_masks_are_exact(values):
    told = read("masks_per_image", values).summary()
    assert told["p50"] == np.quantile(values, 0.5, method="lower")
    assert len(bars([read("masks_per_image", values)]).counts[0]) <= 50


def test_nothing_to_distribute():
    told = as_json(read("stability_score", []))
    assert (told["count"], told["mean"], told["p50"], told["histogram"]) == (0, None, None, [])


def test_a_score_that_is_no_number_is_left_out():
    assert read("predicted_iou", [0.5, float("nan"), float("inf")]).summary()["count"] == 1
