"""The starter's training on a GPU, cut off and taken up again, with a model that a CPU trains in no time."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from data_engine.sam.checkpoints import load_checkpoint, read_checkpoint

ROOT = Path(__file__).parents[2]
SIZES = {"image_size": 64, "embed_dim": 24, "depth": 2, "num_heads": 2, "mlp_dim": 32, "window_size": 3, "dim": 32}
SIZES |= {"global_blocks": [1], "decoder_mlp_dim": 32, "iou_hidden_dim": 16}


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("train_starter_gpu", ROOT / "benchmarks/train_starter_gpu.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def settings(script: ModuleType) -> Any:
    whole = script.Settings.read(ROOT / "configs/starter_gpu.yaml", images_per_step=2)
    architecture = {**whole.architecture, **SIZES}
    small = {"photograph_share": 0.0, "clicks": 3, "boxes": 1, "save_every_seconds": 0.0}
    return replace(whole, architecture=architecture, start=None, **small)


def test_what_is_cut_off_leaves_its_weights(
    script: ModuleType, settings: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cpu = torch.device("cpu")
    starter, images = script.Starter(settings, cpu), script.Images(settings, cpu)
    real, steps = script.train_step, iter([True, False])

    def cut(*arguments: Any) -> Any:
        if next(steps):
            return real(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(script, "train_step", cut)
    with pytest.raises(KeyboardInterrupt):
        script.run(starter, images, tmp_path, tmp_path, 60.0)
    written = load_checkpoint(tmp_path / script.WEIGHTS)
    assert written.architecture == starter.model.architecture
    again = script.Starter(settings, cpu)
    again.resume(tmp_path)
    assert again.progress["step"] == 1
    for mine, expected in zip(again.model.parameters(), starter.model.parameters(), strict=True):
        assert torch.equal(mine, expected)


@pytest.mark.filterwarnings("ignore:.*copying from a non-meta parameter")
def test_taken_up_again_the_counts_of_steps_are_on_the_cpu(script: ModuleType, settings: Any, tmp_path: Path) -> None:
    """On the device, every step would wait for it once a parameter."""
    cpu = torch.device("cpu")
    starter = script.Starter(settings, cpu)
    script.train_step(starter, script.Images(settings, cpu))
    starter.save(tmp_path)
    again = script.Starter(settings, torch.device("meta"))
    again.resume(tmp_path)
    states = again.optimizer.state.values()
    assert {(state["step"].device.type, state["exp_avg"].device.type) for state in states} == {("cpu", "meta")}


def test_it_starts_from_the_weights_that_the_recipe_names(script):
    whole = script.Settings.read(ROOT / "configs/starter_gpu.yaml")
    starter = script.Starter(replace(whole, start=str(ROOT / whole.start)), torch.device("cpu"))
    shipped = read_checkpoint("starter")
    name = "mask_decoder.iou_token.weight"
    assert torch.equal(starter.model.state_dict()[name], shipped.state[name].float())
    assert starter.model.architecture.image_size == whole.architecture["image_size"]
