"""Scenes, prompts and answers of a batch on a device that is not the CPU: what the training on a GPU is made of."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext

import pytest
import torch
from pretended_device import device_of, every_device

from data_engine.sam.model import Sam, SamArchitecture
from data_engine.train.data.batch_decoding import BatchDecoder
from data_engine.train.data.device_prompts import draw_prompts
from data_engine.train.data.torch_scenes import SceneBatch, SceneGenerator
from data_engine.train.losses import decoding_loss

ARCHITECTURE = SamArchitecture(
    embed_dim=32,
    depth=2,
    num_heads=2,
    mlp_dim=64,
    global_blocks=(1,),
    image_size=128,
    window_size=3,
    dim=32,
    mask_hidden_dim=8,
    decoder_mlp_dim=64,
    iou_hidden_dim=32,
)
WEIGHTS = {"focal_weight": 20.0, "dice_weight": 1.0, "iou_weight": 1.0}


@pytest.fixture(params=every_device())
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[torch.device]:
    if request.param == "pretended":
        monkeypatch.setattr(BatchDecoder, "_autocast", lambda self: nullcontext())  # torch knows none for its name
    with device_of(request.param) as device:
        yield device


def drawn(device: torch.device) -> SceneBatch:
    return SceneGenerator(device, most_things=5).draw(2, 96, 128, 4)


def test_the_scenes_of_the_cpu(device: torch.device) -> None:
    expected, found = drawn(torch.device("cpu")), drawn(device)
    assert found.images.device.type == found.levels.device.type == device.type
    same = (found.levels.cpu() == expected.levels).float().mean()
    assert same >= (0.999 if device.type == "cuda" else 1)  # a GPU rounds in its own way


def test_a_step_of_training(device: torch.device) -> None:
    torch.manual_seed(0)
    model, batch = Sam(ARCHITECTURE).to(device), drawn(device)
    prompts = draw_prompts(batch.levels, clicks=4, boxes=2, frame=128, mask_side=32, grid_share=0.5, seed=0)
    decoder = BatchDecoder(model, batch, prompts)
    first = decoder.first()
    second = decoder.corrected(first, torch.Generator(device).manual_seed(1))
    loss = sum(decoding_loss(a.logits, a.iou, a.targets, a.valid, **WEIGHTS).total for a in (first, second))
    loss.backward()
    learning = [parameter.grad for parameter in model.mask_decoder.parameters() if parameter.grad is not None]
    assert {gradient.device.type for gradient in learning} == {device.type}
    assert all(bool(gradient.isfinite().all()) for gradient in learning)
    assert any(bool(gradient.any()) for gradient in learning)
