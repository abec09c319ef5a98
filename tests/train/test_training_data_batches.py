"""Decoding a batch at once: the answers that images one by one get, and gradients that teach."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from pipeline.tiny_job import ARCHITECTURE

from data_engine.sam.model import Sam
from data_engine.sam.prompt_encoder import FOREGROUND
from data_engine.train.data.batch_decoding import BatchDecoder
from data_engine.train.data.device_prompts import draw_prompts
from data_engine.train.data.torch_scenes import SceneGenerator
from data_engine.train.losses import decoding_loss

WEIGHTS = {"focal_weight": 20.0, "dice_weight": 1.0, "iou_weight": 1.0}


@pytest.fixture(scope="module")
def batch():
    return SceneGenerator(most_things=5).draw(2, 96, 128, 4)


@pytest.fixture(scope="module")
def prompts(batch):
    return draw_prompts(batch.levels, clicks=4, boxes=2, frame=128, mask_side=32, grid_share=0.5, seed=0)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Sam(ARCHITECTURE)


@torch.no_grad()
def test_answers_are_those_of_the_images_one_by_one(model, batch, prompts):
    answers = BatchDecoder(model, batch, prompts).first()
    assert answers.logits.shape == (12, 4, 32, 32)
    frame = torch.zeros(1, 3, 128, 128, dtype=torch.uint8)
    for index in range(2):
        frame[0, :, :96] = batch.images[index]
        cells = model.image_encoder(model.normalise(frame, [(96, 128)])).flatten(2).mT[0]
        image = cells + model.prompt_encoder.no_mask_embed.weight[0]
        labels = torch.full((4, 1), FOREGROUND)
        clicks = model.prompt_encoder(points=prompts.clicks[index][:, None], labels=labels)[0]
        boxes = model.prompt_encoder(boxes=prompts.boxes[index])[0]
        decoder = model.mask_decoder
        decoded = decoder.read(image, model.prompt_encoder.dense_positions(), torch.cat([clicks, boxes]))
        logits = decoder.mask_logits(decoded.image, decoder.mask_weights(decoded))
        rows = [*range(4 * index, 4 * index + 4), *range(8 + 2 * index, 8 + 2 * index + 2)]
        torch.testing.assert_close(answers.logits[rows], logits, atol=1e-4, rtol=1e-3)
        torch.testing.assert_close(answers.iou[rows], decoded.iou, atol=1e-4, rtol=1e-3)
        assert torch.equal(answers.targets[rows], prompts.targets[index])
        assert torch.equal(answers.valid[rows], prompts.valid[index])


def test_a_batch_can_be_learnt(model, batch, prompts):
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for number in range(12):
        decoder = BatchDecoder(model, batch, prompts)
        first = decoder.first()
        second = decoder.corrected(first, torch.Generator().manual_seed(number))
        assert second.logits.shape == (8, 4, 32, 32)
        assert second.targets.shape == (8, 1, 32, 32)
        loss = sum(decoding_loss(a.logits, a.iou, a.targets, a.valid, **WEIGHTS).total for a in (first, second))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.8 * losses[0]


def test_the_recipe_for_a_gpu_has_the_architecture_of_the_starters_second_stage(tmp_path):
    root = Path(__file__).parents[2]
    spec = importlib.util.spec_from_file_location("train_starter_gpu", root / "benchmarks/train_starter_gpu.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    settings = module.Settings.read(root / "configs/starter_gpu.yaml", seconds=60.0)
    assert settings.seconds == 60
    starter = yaml.safe_load((root / "configs/starter_large_input.yaml").read_text())
    assert settings.architecture == starter["architecture"]
    done = subprocess.run(
        ["bash", "benchmarks/train_starter_gpu.sh", "--dry-run"],
        cwd=root,
        env={**os.environ, "STARTER_CALL": "90", "OUT": str(tmp_path), "STARTER_WORK": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "--stop-after 90" in done.stdout
