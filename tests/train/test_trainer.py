"""Training: it learns, it follows its schedule, and a killed run goes on to the same weights."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from parity.reference import SamPredictor as ReferencePredictor
from parity.reference import reference_sam
from train.tiny_training import ARCHITECTURE, config_for, stream_for, write_photographs

from data_engine.errors import CheckpointError, ConfigError
from data_engine.sam.checkpoints import load_checkpoint
from data_engine.sam.predictor import SamPredictor
from data_engine.sam.segmenter import load_segmenter
from data_engine.train.__main__ import new_model
from data_engine.train.config import TrainConfig, load_config
from data_engine.train.decoding import at_phase, logits_at_phase
from data_engine.train.export import export
from data_engine.train.samples import batches
from data_engine.train.trainer import Trainer, learning_rate


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_photographs(tmp_path_factory.mktemp("photos"))


def trainer_in(folder: Path, config: TrainConfig) -> Trainer:
    torch.manual_seed(0)
    return Trainer(new_model(config.architecture), config, folder)


def feed(trainer: Trainer, photographs: Path, until: int) -> None:
    trainer.run(batches(stream_for(photographs), start=trainer.progress.step, count=until, size=2, workers=0))


def test_steps_on_one_batch_lower_the_loss(photographs, tmp_path):
    trainer = trainer_in(tmp_path, config_for(photographs, learning_rate=1e-2))
    batch = next(iter(batches(stream_for(photographs), start=0, count=1, size=2, workers=0)))
    first = float(trainer.step(batch).total)
    last = [float(trainer.step(batch).total) for _ in range(40)][-1]
    assert last < 0.8 * first


def test_a_run_that_was_cut_goes_on_to_the_same_weights(photographs, tmp_path):
    config = config_for(photographs)
    whole = trainer_in(tmp_path / "whole", config)
    feed(whole, photographs, until=6)
    feed(trainer_in(tmp_path / "cut", config), photographs, until=3)
    resumed = trainer_in(tmp_path / "cut", config)
    assert resumed.resume()
    assert resumed.progress.step == 3
    feed(resumed, photographs, until=6)
    for name, tensor in whole.average.state_dict().items():
        torch.testing.assert_close(resumed.average.state_dict()[name], tensor, rtol=1e-5, atol=1e-6, msg=name)


def test_the_log_has_a_line_now_and_then(photographs, tmp_path):
    feed(trainer_in(tmp_path, config_for(photographs)), photographs, until=4)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4]
    assert {"total", "focal", "dice", "iou_error", "best_iou", "learning_rate"} <= lines[0].keys()


def test_the_schedule_warms_up_stays_and_ends_at_zero(photographs):
    config = config_for(photographs, warmup_steps=10, decay_share=0.5, learning_rate=1.0)
    assert learning_rate(config, 0, 0.0) == pytest.approx(0.1)
    assert learning_rate(config, 9, 0.1) == 1.0
    assert learning_rate(config, 100, 0.5) == 1.0
    assert learning_rate(config, 100, 0.75) == pytest.approx(0.5)
    assert learning_rate(config, 100, 1.0) == 0.0


def test_a_time_budget_ends_the_run(photographs, tmp_path):
    seconds = iter(range(0, 10_000, 25))
    config = config_for(photographs, minutes=1.0, steps=100)
    torch.manual_seed(0)
    trainer = Trainer(new_model(ARCHITECTURE), config, tmp_path, clock=lambda: float(next(seconds)))
    feed(trainer, photographs, until=100)
    assert 1 <= trainer.progress.step < 10
    assert trainer.share_done() >= 1


@pytest.mark.parametrize("phase", [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_a_phase_is_that_quarter_of_the_logits(phase):
    torch.manual_seed(0)
    model = new_model(ARCHITECTURE)
    image, weights = torch.randn(3, ARCHITECTURE.grid**2, 32), torch.randn(3, 4, 4)
    whole = model.mask_decoder.mask_logits(image, weights)
    torch.testing.assert_close(logits_at_phase(model.mask_decoder, image, weights, phase), at_phase(whole, phase))


def test_an_exported_run_loads_here_and_in_segment_anything(photographs, tmp_path):
    trainer = trainer_in(tmp_path / "run", config_for(photographs))
    feed(trainer, photographs, until=2)
    path = export(tmp_path / "run", tmp_path / "out" / "starter")
    segmenter = load_segmenter(path, "cpu")
    checkpoint = load_checkpoint(path)
    facts = json.loads(path.with_suffix(".json").read_text())
    assert facts["sha256"] == checkpoint.sha256
    assert facts["size"] == path.stat().st_size
    for name, tensor in segmenter.model.state_dict().items():
        torch.testing.assert_close(tensor, trainer.average.state_dict()[name], rtol=1e-3, atol=1e-3)
    reference = reference_sam(checkpoint.architecture)
    reference.load_state_dict(checkpoint.state, strict=True)
    size = checkpoint.architecture.image_size
    image = np.random.default_rng(0).integers(0, 256, (size, size - 10, 3), np.uint8)
    click, label = np.array([[20.0, 30.0]]), np.ones(1)
    ours, theirs = SamPredictor(segmenter), ReferencePredictor(reference)
    for predictor in (ours, theirs):
        predictor.set_image(image)
    for mine, yours in zip(ours.predict(click, label), theirs.predict(click, label), strict=True):  # also the logits
        np.testing.assert_allclose(mine, yours, rtol=1e-4, atol=1e-4)


def test_a_run_without_a_checkpoint_cannot_be_exported(tmp_path):
    with pytest.raises(CheckpointError, match=r"has no checkpoint\.pt"):
        export(tmp_path, tmp_path / "starter")


@pytest.mark.parametrize("name", ["starter", "starter_large_input"])
def test_the_shipped_recipes_load(name):
    config = load_config(Path(__file__).parents[2] / "configs" / f"{name}.yaml")
    assert replace(config.architecture) == config.architecture


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("steps: many\n", r"mine\.yaml: .*steps: Input should be a valid integer"),
        ("step: 3\n", r"\bstep: Unexpected"),
        ("data: {photographs: here, click: 3}\n", r"data\.click: Unexpected"),
        ("{}\n", "architecture: Field required"),
        ("a: [\n", "is not YAML"),
    ],
)
def test_a_wrong_recipe_is_explained(tmp_path, text, message):
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_config(tmp_path / "mine.yaml")
