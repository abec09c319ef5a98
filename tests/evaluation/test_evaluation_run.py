"""The whole measurement on planted ground truth: what is counted, what is asked, and what a report says of it."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from evaluation.stripes import StripeSegmenter, ids, write_picture
from PIL import Image
from rich.console import Console

from data_engine.errors import SourceError, UsageError
from data_engine.evaluation.layouts import open_ground_truth
from data_engine.evaluation.optional import optional
from data_engine.evaluation.report import as_json, as_table, remarks
from data_engine.evaluation.run import EvaluationSettings, measure
from data_engine.masks.settings import MaskSettings

GENERATE = MaskSettings(points_per_side=4, pred_iou_thresh=0.4, stability_score_thresh=0.5)


@pytest.fixture
def truth(tmp_path):
    """Two pictures of four stripes; in the second, a speck of the first stripe is a region of its own."""
    (tmp_path / "segments").mkdir()
    for name in ("a", "b"):
        numbers = ids()
        if name == "b":
            numbers[:4, :4] = 9
        write_picture(tmp_path / f"images/{name}.png")
        Image.fromarray(numbers).save(tmp_path / f"segments/{name}.png")
    return open_ground_truth(str(tmp_path))


def test_a_perfect_model_has_perfect_scores(truth):
    seen = []
    settings = EvaluationSettings(automatic=GENERATE, clicks=(1, 2))
    measured = measure(StripeSegmenter(), truth, settings, lambda done, total: seen.append((done, total)))
    assert seen == [(0, 2), (1, 2), (2, 2)]
    result = as_json(StripeSegmenter(), "stripes", truth, settings, measured)
    assert result["counts"]["objects"] == 9
    assert result["counts"]["asked"] == {"all": 8, "small": 0, "medium": 0, "large": 8}
    for found in (result["clicks"]["1"], result["clicks"]["2"], result["boxes"]):
        assert found["best_of_three"]["all"] == pytest.approx(1, abs=1e-3)
        assert found["highest_predicted_iou"]["boundary"] == pytest.approx(1, abs=0.02)
        assert found["best_of_three"]["small"] is None
    assert result["baselines"]["flood_fill"]["best_of_three"]["all"] == pytest.approx(1, abs=1e-3)
    assert result["automatic"]["AR@100"] == {
        "all": pytest.approx(8 / 9, abs=1e-3),
        "small": 0,
        "medium": None,
        "large": 1,
    }
    assert result["automatic"]["masks_per_image"] == 4


def test_an_over_confident_model_is_found_out(truth):
    model = StripeSegmenter(shifts=(32, 32, 32), promised=(1.0, 1.0, 1.0))
    settings = EvaluationSettings(clicks=(1,), boxes=False, baselines=False)
    found = as_json(model, "stripes", truth, settings, measure(model, truth, settings))
    # Three stripes have a third of their union, the last one half of itself.
    assert found["calibration"]["mean_true"] == pytest.approx((3 / 3 + 1 / 2) / 4, abs=1e-3)
    assert found["calibration"]["expected_error"] == pytest.approx(1 - (3 / 3 + 1 / 2) / 4, abs=1e-3)
    assert found["calibration"]["spearman"] is None
    assert found["boxes"] is found["automatic"] is None
    assert found["baselines"] == {}


def test_an_image_is_encoded_once_for_everything(truth):
    model = StripeSegmenter()
    measure(model, truth, EvaluationSettings(automatic=GENERATE))
    assert model.encoded == 2
    measure(model, truth, EvaluationSettings(clicks=(), boxes=False, baselines=True))
    assert model.encoded == 2  # baselines need no model


def test_a_sample_of_objects_depends_on_seed_and_image_alone(truth):
    def asked(limit: int | None, seed: int) -> list[list[float]]:
        model = StripeSegmenter()
        settings = EvaluationSettings(
            clicks=(1,), boxes=False, baselines=False, limit=limit, masks_per_image=2, seed=seed
        )
        measured = measure(model, truth, settings)
        assert len(measured.area) == 2 * (limit or 2)
        return [one["points"][:, 0].tolist() for one in model.asked if one["multimask"]]

    assert asked(None, 0)[0] == asked(1, 0)[0]
    assert len({str(asked(1, seed)) for seed in range(6)}) > 1


def test_objects_that_are_all_too_small_are_said(truth):
    with pytest.raises(SourceError, match="lower --smallest-share"):
        measure(StripeSegmenter(), truth, EvaluationSettings(smallest_share=0.9, baselines=False))
    everything = EvaluationSettings(smallest_share=0, clicks=(1,), boxes=False, baselines=False)
    assert len(measure(StripeSegmenter(), truth, everything).area) == 9


def test_images_that_cannot_be_used_are_passed_over_counted_and_said(truth, tmp_path, caplog, monkeypatch):
    settings = EvaluationSettings(clicks=(1,), boxes=False, baselines=False)
    size = (tmp_path / "images/a.png").stat().st_size
    (tmp_path / "images/a.png").write_bytes(bytes(size))
    seen = []
    measured = measure(StripeSegmenter(), truth, settings, lambda done, total: seen.append((done, total)))
    assert seen[-1] == (2, 2)
    result = as_json(StripeSegmenter(), "stripes", truth, settings, measured)
    assert result["counts"]["images"] == 1
    (why,) = result["data"]["images_passed_over"]
    assert "a.png is no picture that can be measured on" in why
    assert remarks(result)[0].startswith("Not in these figures: 1 images that cannot be used, such as ")
    assert f"passed over: {why}" in caplog.text
    (tmp_path / "images/b.png").write_bytes(bytes(size))
    with pytest.raises(SourceError, match=r"no image can be measured on, the last since .*b\.png is no picture"):
        measure(StripeSegmenter(), truth, settings)
    monkeypatch.setattr("data_engine.evaluation.run._UNUSABLE_AT_FIRST", 1)
    with pytest.raises(SourceError, match=r"the first 1 images cannot be measured on, the last since .*a\.png is no"):
        measure(StripeSegmenter(), truth, settings)


def test_settings_that_measure_nothing_are_refused():
    with pytest.raises(UsageError, match="use numbers from 1 to 50"):
        EvaluationSettings(clicks=(0, 1))
    with pytest.raises(UsageError, match="nothing to measure"):
        EvaluationSettings(clicks=(), boxes=False, baselines=False)


def test_the_table_shows_what_the_json_holds(truth):
    settings = EvaluationSettings(clicks=(1, 2), automatic=GENERATE)
    model = StripeSegmenter(shifts=(16, 8, 32))
    result = as_json(model, "stripes", truth, settings, measure(model, truth, settings))
    read = json.loads(json.dumps(result))
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(as_table(read))
    text = console.export_text()
    for line in (
        "1 click: best of three",
        "2 clicks: single mask",
        "box: highest predicted IoU",
        "AR@1000",
        "Flood fill",
    ):
        assert line in text
    row = next(line for line in text.splitlines() if "1 click: best of three" in line)
    assert f"{read['clicks']['1']['best_of_three']['all']:.3f}" in row
    assert "rank correlation" in remarks(read)[0]
    assert np.isclose(read["clicks"]["1"]["highest_predicted_iou"]["all"], (3 * 48 / 80 + 48 / 64) / 4, atol=1e-3)


def test_a_package_that_is_missing_is_named_with_its_remedy(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "skimage.segmentation", None)
    with pytest.raises(UsageError, match=r"needs scikit-image: pip install 'data-engine\[train\]'"):
        optional("skimage.segmentation")
