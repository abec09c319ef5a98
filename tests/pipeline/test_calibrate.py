"""What a job will cost, from a sample: the arithmetic is right, nothing is written, failures are seen."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from pipeline.tiny_job import config_for, save_model, write_photos, write_tar

from data_engine.dataset.reader import MaskDataset
from data_engine.errors import SourceError
from data_engine.masks.generator import MaskGenerator
from data_engine.masks.prompting import NonFiniteOutput
from data_engine.pipeline.calibrate import Calibration, Estimate, calibrate
from data_engine.pipeline.job import generate
from data_engine.pipeline.plan import make_plan

SAMPLE = Calibration(
    device="cuda", sampled=4, failed=0, seconds=(0.1, 0.3), decode_seconds=0.05, masks=50.0, input_bytes=2e5,
    output_bytes=4e4,
)  # fmt: skip


@pytest.fixture
def photos_plan(tmp_path):
    config = config_for(save_model(tmp_path / "tiny.safetensors"))
    return make_plan(str(write_photos(tmp_path / "photos", 12)), config), config


def test_an_estimate_multiplies_the_sample(photos_plan):
    estimate = Estimate.of(photos_plan[0], SAMPLE, price_per_hour=3.0)
    assert estimate.images == 12
    assert estimate.images_are_counted
    assert estimate.masks == 600
    assert estimate.output_bytes == 480_000
    assert estimate.hours == pytest.approx(12 * 0.2 / 3600)
    assert estimate.cost == pytest.approx(3.0 * estimate.hours)
    assert estimate.decode_cores == pytest.approx(0.25)
    assert pytest.approx(0.5) == SAMPLE.error


def test_images_of_tars_are_estimated_from_their_bytes(tmp_path):
    tar = write_tar(tmp_path / "a.tar", 40)
    plan = make_plan(str(tar), config_for(save_model(tmp_path / "tiny.safetensors")))
    estimate = Estimate.of(plan, replace(SAMPLE, input_bytes=1000.0))
    assert not estimate.images_are_counted
    assert estimate.images == round(tar.stat().st_size / 1000)
    assert estimate.cost is None


def test_a_sample_is_measured_and_nothing_is_written(photos_plan, tmp_path):
    plan, config = photos_plan
    before = sorted(tmp_path.rglob("*"))
    sample = calibrate(plan, config, 5)
    assert sorted(tmp_path.rglob("*")) == before
    assert sample.sampled == 5
    assert sample.failed == 0
    assert all(seconds > 0 for seconds in sample.seconds)
    assert sample.masks > 0
    assert sample.output_bytes > 0


def test_an_input_of_broken_images_says_so(tmp_path):
    config = config_for(save_model(tmp_path / "tiny.safetensors"))
    plan = make_plan(str(write_tar(tmp_path / "a.tar", 3, broken=(0, 1, 2))), config)
    with pytest.raises(SourceError, match="none of the first"):
        calibrate(plan, config, 2)


def test_an_input_of_one_image_says_that_it_warms_up(tmp_path):
    config = config_for(save_model(tmp_path / "tiny.safetensors"))
    plan = make_plan(str(write_photos(tmp_path / "photos", 1)), config)
    with pytest.raises(SourceError, match="only one, which warms up, of the first 1 images"):
        calibrate(plan, config, 2)


def test_the_first_image_that_is_masked_warms_up(tmp_path):
    """Broken ones before it have not shown the model anything."""
    config = config_for(save_model(tmp_path / "tiny.safetensors"))
    plan = make_plan(str(write_tar(tmp_path / "a.tar", 5, broken=(0, 1))), config)
    sample = calibrate(plan, config, 4)
    assert (sample.sampled, sample.failed) == (2, 2)


def test_an_image_on_which_the_model_fails_is_a_failed_one(photos_plan, monkeypatch):
    run, calls = MaskGenerator.run, iter(range(100))

    def fails_once(self, image, **more):
        if next(calls) == 2:
            raise NonFiniteOutput("the model gave NaN")
        return run(self, image, **more)

    monkeypatch.setattr(MaskGenerator, "run", fails_once)
    sample = calibrate(*photos_plan, 4)
    assert (sample.sampled, sample.failed) == (3, 1)


@pytest.mark.parametrize("share", [0.25, 1.0])
def test_kept_rejects_are_in_the_estimate(photos_plan, tmp_path, share):
    """A hash keeps those of hardly any image of a small sample, so their bytes are a share of those of all."""
    plan, config = photos_plan
    without = calibrate(plan, config, 11).output_bytes
    floors = ["output.reject_floor_iou=0", "output.reject_floor_stability=0"]
    keeping = config_for(Path(config.model.name), *floors, f"output.keep_rejects={share}")
    with_all = config_for(Path(config.model.name), *floors, "output.keep_rejects=1")
    report = generate(plan.input, str(tmp_path / "out"), with_all)
    written = sum(record.rejects.size for record in MaskDataset(tmp_path / "out").commits if record.rejects)
    assert report.totals.images == 12
    estimated = calibrate(make_plan(plan.input, keeping), keeping, 11).output_bytes
    assert estimated - without == pytest.approx(share * written / 12, rel=0.3)
