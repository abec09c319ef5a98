from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_engine.config import load_config
from data_engine.errors import ConfigError, UsageError
from data_engine.replay.outcome import Areas
from data_engine.replay.settings import sweep


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("masks.pred_iou_thresh=0.8:0.9:0.02", ["0.8", "0.82", "0.84", "0.86", "0.88", "0.9"]),
        ("masks.pred_iou_thresh=0.8:0.895:0.03", ["0.8", "0.83", "0.86", "0.89"]),
        ("masks.min_mask_region_area=0:200:100", ["0", "100", "200"]),
        ("masks.min_mask_region_area=1000000:1000002:1", ["1000000", "1000001", "1000002"]),
        ("masks.pred_iou_thresh=0.5:0.5:1", ["0.5"]),
        ("masks.suppression=box,mask", ["box", "mask"]),
        ("masks.pred_iou_thresh=0.9", ["0.9"]),
    ],
)
def test_values_of_a_sweep(text: str, values: list[str]) -> None:
    assert sweep(text) == (text.split("=")[0], values)


@pytest.mark.parametrize("values", ["", "1:2", "1:2:x", "2:1:0.1", "1:2:0", "0:1:nan", "0:inf:1", "0:1:0.00001"])
def test_sweeps_that_are_none(values: str) -> None:
    with pytest.raises(UsageError, match="--sweep"):
        sweep(f"masks.pred_iou_thresh={values}")


@given(st.integers(0, 400), st.integers(1, 400), st.sampled_from([0.001, 0.01, 0.02, 0.05, 0.1]))
def test_both_ends_of_a_range_are_in_it(first: int, steps: int, step: float) -> None:
    ends = first * step, (first + steps) * step
    _, values = sweep(f"a.b={ends[0]:.6g}:{ends[1]:.6g}:{step}")
    assert len(values) == steps + 1
    assert (float(values[0]), float(values[-1])) == pytest.approx(ends, rel=1e-5)


@given(st.lists(st.integers(1, 10**9), min_size=1, max_size=300), st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0]))
def test_quantiles_of_areas_are_right_to_about_one_percent(areas: list[int], share: float) -> None:
    found = Areas()
    half = len(areas) // 2
    found.add(np.array(areas[:half], np.int64))
    found.add(np.array(areas[half:], np.int64))
    exact = np.quantile(areas, share, method="inverted_cdf")
    assert found.quantile(share) == pytest.approx(exact, rel=0.012, abs=1)


def test_areas_of_no_masks() -> None:
    assert Areas().quantile(0.5) is None


def test_rejects_and_adaptive_points_exclude_each_other() -> None:
    with pytest.raises(ConfigError, match=r"output\.keep_rejects.*masks\.adaptive_points"):
        load_config(None, ["output.keep_rejects=0.1", "masks.adaptive_points=true"])
    with pytest.raises(ConfigError, match=r"output\.keep_rejects"):
        load_config(None, ["output.keep_rejects=1.5"])
