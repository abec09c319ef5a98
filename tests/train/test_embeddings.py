"""Kept embeddings: bounded, found again, never of another view or model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from train.blobs import Blobs, settings_for

from data_engine.train.supervised.decoding_step import GradientStep
from data_engine.train.supervised.embeddings import InMemory, OnDisk, key_of
from data_engine.train.supervised.encoder import add_drop_path
from data_engine.train.supervised.optimizer import trained_parameters
from data_engine.train.supervised.starting_model import starting_model
from data_engine.train.supervised.views import ViewMaker


def array(value: float) -> np.ndarray:
    return np.full((4, 8, 8), value, np.float16)  # 512 bytes


@pytest.mark.parametrize("kind", ["memory", "disk"])
def test_no_more_is_kept_than_the_limit(kind, tmp_path):
    kept = InMemory(1500) if kind == "memory" else OnDisk(tmp_path, 1500)
    for number in range(5):
        kept.put(str(number), array(number))
    found = [number for number in range(5) if kept.get(str(number)) is not None]
    assert found == [0, 1]
    np.testing.assert_array_equal(kept.get("1"), array(1))
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) <= 1500


def test_files_of_an_earlier_run_are_used_or_make_room(tmp_path):
    earlier = OnDisk(tmp_path, 1500)
    for name in ("used", "stale"):
        earlier.put(name, array(7))
    later = OnDisk(tmp_path, 1500)
    np.testing.assert_array_equal(later.get("used"), array(7))
    later.put("new", array(8))
    assert {file.stem for file in tmp_path.iterdir()} == {"used", "new"}


def test_a_damaged_file_is_encoded_again(tmp_path):
    OnDisk(tmp_path, 5000).put("cut", array(1))
    (tmp_path / "cut.npy").write_bytes((tmp_path / "cut.npy").read_bytes()[:200])
    kept = OnDisk(tmp_path, 5000)
    assert kept.get("cut") is None
    kept.put("cut", array(1))
    np.testing.assert_array_equal(kept.get("cut"), array(1))


def examples(settings):
    maker = ViewMaker(settings.data, 4, 0, 64, 64)
    return [maker.view(image, 0) for image in Blobs(3).epoch(0, seed=0)]


def test_gradients_are_the_same_from_kept_embeddings():
    settings = settings_for(train={"frozen": ["image_encoder.*"], "drop_path": 0.5})
    start, kept = starting_model(settings), InMemory(1 << 20)
    add_drop_path(start.model.image_encoder, 0.5)  # of no effect in a frozen encoder
    found = []
    for keeper in (kept, kept, InMemory(0)):
        start.model.zero_grad()
        figures = GradientStep(start.model, settings, torch.device("cpu"), keeper, "weights").run(examples(settings))
        found.append((figures, [p.grad.clone() for _, p in trained_parameters(start.model) if p.grad is not None]))
    for figures, gradients in found[1:]:
        assert torch.equal(found[0][0], figures)
        assert all(torch.equal(a, b) for a, b in zip(found[0][1], gradients, strict=True))
    assert all(kept.get(key_of(example, "weights")) is not None for example in examples(settings))
    assert all(kept.get(key_of(example, "others")) is None for example in examples(settings))


def test_files_that_another_run_removes_meanwhile_are_none(tmp_path, monkeypatch):
    OnDisk(tmp_path, 1500).put("there", array(7))
    listed = [tmp_path / "gone.npy", tmp_path / "there.npy"]
    monkeypatch.setattr(Path, "glob", lambda *_: iter(listed))
    kept = OnDisk(tmp_path, 1500)
    assert kept.get("gone") is None
    np.testing.assert_array_equal(kept.get("there"), array(7))
