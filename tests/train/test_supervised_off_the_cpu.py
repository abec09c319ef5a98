"""A step of `data-engine train` with a model that is not on the CPU: rounds of prompts, gradients, weights, average."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from pretended_device import device_of, every_device
from torch import nn
from train.tiny_training import ARCHITECTURE

from data_engine.train.initialise import new_model
from data_engine.train.supervised.average import AverageWeights
from data_engine.train.supervised.decoding_step import GradientStep
from data_engine.train.supervised.embeddings import InMemory
from data_engine.train.supervised.encoder import add_drop_path, checkpoint_blocks
from data_engine.train.supervised.optimizer import make_optimizer
from data_engine.train.supervised.settings import TrainingSettings
from data_engine.train.supervised.starting_model import freeze
from data_engine.train.supervised.views import Example

SIDE = ARCHITECTURE.image_size
SIZES = {"embed_dim": 32, "depth": 2, "num_heads": 2, "mlp_dim": 64, "global_blocks": [1]}


@pytest.fixture(params=every_device())
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[torch.device]:
    if request.param == "pretended":
        monkeypatch.setattr(GradientStep, "_autocast", lambda self: nullcontext())  # torch knows none for its name
    with device_of(request.param) as device:
        yield device


def example(seed: int) -> Example:
    targets = torch.zeros(4, SIDE, SIDE, dtype=torch.bool)
    for index in range(4):
        targets[index, 8 * index : 8 * index + 20, 10:50] = True
    pixels = torch.randint(256, (3, SIDE, SIDE), generator=torch.Generator().manual_seed(seed)).to(torch.uint8)
    return Example(str(seed), pixels, (SIDE, SIDE - 8), targets, seed)


@pytest.mark.parametrize(
    "train",
    [{}, {"frozen": []}, {"frozen": [], "precision": "bfloat16", "drop_path": 0.5}],
    ids=["frozen encoder", "everything", "everything in bfloat16, with checkpoints"],
)
def test_a_step_of_training(device: torch.device, train: dict[str, Any]) -> None:
    torch.manual_seed(0)
    prompts, loss = {"corrections": 2, "mask_only_rounds": 1}, {"upsample": 2}
    sections: dict[str, Any] = {"model": {"architecture": SIZES}, "prompts": prompts, "loss": loss}
    settings = TrainingSettings.model_validate({**sections, "train": {"images_per_batch": 2, **train}})
    model = new_model(ARCHITECTURE)
    freeze(model, settings.train.frozen)
    model.to(device)
    add_drop_path(model.image_encoder, settings.train.drop_path)
    if settings.train.drop_path:
        checkpoint_blocks(model.image_encoder)
    kept = InMemory(2**20) if settings.train.frozen else None
    gradients = GradientStep(model, settings, device, kept, "weights")
    optimizer, average = make_optimizer(model, settings.optimizer), AverageWeights(model, 0.9)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for step in range(2):
        figures = gradients.run([example(seed) for seed in range(3)])
        assert figures.device.type == "cpu"
        assert bool(figures.isfinite().all())
        assert float(nn.utils.clip_grad_norm_(parameters, 1.0)) > 0
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        average.update(step)
    assert {weight.device.type for weight in average.weights.values()} == {device.type}
    assert all(bool(weight.isfinite().all()) for weight in average.weights.values())
