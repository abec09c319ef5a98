"""Random weights whose masks are lifelike, so that what comes after the network is measured too."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from bench.small import PHOTOGRAPHS, SMALL, needs_segment_anything

from data_engine.bench.models import load_model
from data_engine.bench.photographs import read_photographs
from data_engine.bench.random_sam import calibrated
from data_engine.bench.reference import reference_sam
from data_engine.masks.generator import MaskGenerator
from data_engine.masks.image_masks import ImageMasks
from data_engine.sam.segmenter import SamSegmenter


@pytest.fixture(scope="module")
def masks() -> ImageMasks:
    [photograph] = read_photographs(str(PHOTOGRAPHS / "dog.jpg"), 1)
    segmenter = SamSegmenter(calibrated(SMALL), torch.device("cpu"), "reference")
    generator = MaskGenerator(segmenter, points_per_side=12)
    return generator.run(generator.prepare(photograph.pixels))


def test_about_half_of_the_masks_pass_the_predicted_iou(masks: ImageMasks) -> None:
    counts = masks.filtered
    assert 0.3 < 1 - counts.rejected_iou / counts.candidates < 0.7


def test_many_of_these_are_stable_and_many_of_those_are_doubles(masks: ImageMasks) -> None:
    """A small decoder has slopes less steep than a released one, where about nine in ten are stable."""
    counts = masks.filtered
    passed = counts.candidates - counts.rejected_iou
    stable = passed - counts.rejected_stability
    assert stable > 0.25 * passed
    assert 20 < len(masks) < 0.8 * stable


def test_masks_are_small_and_hold_their_click(masks: ImageMasks) -> None:
    frame = masks.height * masks.width
    assert 0.005 < np.median(masks.area) / frame < 0.15
    inside = [masks.mask(i)[int(y), int(x)] for i, (x, y) in enumerate(masks.points)]
    assert np.mean(inside) > 0.8


def test_the_same_seed_gives_the_same_weights() -> None:
    first, again, other = (calibrated(SMALL, seed).state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["image_encoder.pos_embed"], other["image_encoder.pos_embed"])


def test_every_weight_is_drawn() -> None:
    """Memory that was never written to may hold anything, now this and now that."""
    state = calibrated(SMALL).state_dict()
    assert all(torch.isfinite(value).all() for value in state.values())
    assert max(float(value.abs().max()) for value in state.values()) < 1e4


def test_segment_anything_takes_the_weights() -> None:
    needs_segment_anything()
    sam = calibrated(SMALL)
    theirs = reference_sam(SMALL, sam.state_dict())
    assert theirs.state_dict().keys() == sam.state_dict().keys()
    weight = "mask_decoder.iou_token.weight"
    assert theirs.state_dict()[weight].data_ptr() == sam.state_dict()[weight].data_ptr()  # one copy in memory


def test_a_known_model_comes_with_its_own_weights() -> None:
    model = load_model("starter", torch.device("cpu"))
    assert model.weights.startswith("sha256 ")
    assert model.sam.architecture.image_size == 256
