"""Mask generation with a model that is not on the CPU: nothing is left on the wrong side, and nothing is lost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch
from pretended_device import device_of, every_device, pretended_device
from torch.utils._python_dispatch import TorchDispatchMode

from data_engine.bench.random_sam import calibrated, noise_picture
from data_engine.masks.floors import Floors
from data_engine.masks.generator import MaskGenerator
from data_engine.masks.image_masks import ImageMasks
from data_engine.sam.model import Sam, SamArchitecture
from data_engine.sam.predictor import SamPredictor
from data_engine.sam.segmenter import SamSegmenter

ARCHITECTURE = SamArchitecture(
    embed_dim=48,
    depth=2,
    num_heads=3,
    mlp_dim=96,
    global_blocks=(1,),
    image_size=128,
    window_size=3,  # 8 cells a side: the last windows are padded
    dim=32,
    mask_hidden_dim=8,
    decoder_mlp_dim=64,
    iou_hidden_dim=24,
)
SETTINGS: dict[str, Any] = {
    "points_per_side": 6,
    "pred_iou_thresh": 0.8,
    "stability_score_thresh": 0.3,
    "crop_n_layers": 1,
}
IMAGE = noise_picture(100, 150, np.random.default_rng(0))
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def sam() -> Sam:
    return calibrated(ARCHITECTURE)


@pytest.fixture(params=every_device())
def device(sam: Sam, request: pytest.FixtureRequest) -> Iterator[torch.device]:
    with device_of(request.param) as device:
        yield device


def masks(sam: Sam, device: torch.device, floors: Floors | None, **settings: Any) -> ImageMasks:
    generator = MaskGenerator(SamSegmenter(deepcopy(sam), device, "reference"), **{**SETTINGS, **settings})
    return generator.run(generator.prepare(IMAGE), floors=floors)


@pytest.mark.parametrize(
    ("settings", "floors"),
    [
        ({}, None),
        ({"min_mask_region_area": 30, "suppression": "mask"}, None),
        ({"points_per_side": 8, "adaptive_points": True}, None),
        ({}, Floors(0.7, 0.1)),
    ],
    ids=["plain", "by masks", "adaptive", "rejects"],
)
def test_the_masks_of_the_cpu(sam: Sam, device: torch.device, settings: dict[str, Any], floors: Floors | None) -> None:
    expected, found = masks(sam, CPU, floors, **settings), masks(sam, device, floors, **settings)
    assert len(expected) > 10
    if device.type == "cuda":  # which rounds in its own way
        assert abs(len(found) - len(expected)) <= len(expected) / 10
    else:
        assert found.counts == expected.counts
        assert found.filtered == expected.filtered


@pytest.mark.parametrize("floors", [None, Floors(9.0, 0.1)])
def test_prompts_of_which_no_mask_passes(sam: Sam, device: torch.device, floors: Floors | None) -> None:
    found = masks(sam, device, floors, pred_iou_thresh=9.0)
    assert len(found) == 0
    assert found.filtered.rejected_iou == found.filtered.candidates == 3 * 5 * 36


def test_a_random_model_made_there(device: torch.device) -> None:
    made = calibrated(ARCHITECTURE, 0, device)
    assert {parameter.device.type for parameter in made.parameters()} == {device.type}


def test_an_encoder_in_bfloat16(sam: Sam, device: torch.device) -> None:
    segmenter = SamSegmenter(deepcopy(sam), device, "fast")
    embeddings = segmenter.encode([segmenter.prepare(IMAGE)])
    assert embeddings.features.dtype == torch.float32
    assert embeddings.finite()


def test_the_predictor(sam: Sam, device: torch.device) -> None:
    answers = []
    for place in (CPU, device):
        predictor = SamPredictor(SamSegmenter(deepcopy(sam), place, "reference"))
        predictor.set_image(IMAGE)
        points, labels = np.array([[40, 50], [90, 20]]), np.array([1, 0])
        _, scores, logits = predictor.predict(points, labels, box=np.array([5, 8, 100, 80]))
        again = predictor.predict(points, labels, mask_input=logits[:1], multimask_output=False)
        answers.append((scores, logits, *again))
    for mine, expected in zip(answers[1], answers[0], strict=True):
        assert mine.shape == expected.shape
    np.testing.assert_allclose(answers[1][0], answers[0][0], atol=1e-3)


class Called(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.times: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), named: Any = None) -> Any:
        self.times[function.overloadpacket.__name__] += 1
        return function(*args, **(named or {}))


@torch.no_grad()
def test_the_upscaling_of_many_prompts_is_not_cut_into_small_pieces(sam: Sam) -> None:
    """Each piece is two products; on a GPU small ones cost their launch."""
    with pretended_device() as device:
        decoder = deepcopy(sam).to(device).mask_decoder
        image, weights = (torch.rand(128, count, size, device=device) for count, size in ((64, 32), (3, 4)))
        with Called() as called:
            assert decoder.mask_logits(image, weights).shape == (128, 3, 32, 32)
    assert called.times["addmm"] == 2
