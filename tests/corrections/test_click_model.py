"""Answers to clicks are `SamPredictor`'s, and an image is encoded once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data_engine.corrections import click_model
from data_engine.corrections.click_model import ClickModel, Prompts
from data_engine.errors import CheckpointError, ModelFailure, UsageError
from data_engine.masks import rle
from data_engine.sam.predictor import SamPredictor
from data_engine.sam.segmenter import load_segmenter

PHOTO = Path(__file__).parents[2] / "examples/photos/coffee.jpg"


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    return np.asarray(Image.open(PHOTO).resize((450, 300)))


@pytest.fixture(scope="module")
def model() -> ClickModel:
    return ClickModel("starter", "cpu", stability_offset=0.3)


@pytest.mark.parametrize(
    ("prompts", "most"),
    [
        (Prompts(points=((200, 100, 1),)), 3),
        (Prompts(points=((200, 100, 1), (20, 280, 0))), 1),
        (Prompts(box=(150, 60, 260, 150)), 1),
        (Prompts(points=((200, 100, 1),), box=(150, 60, 260, 150)), 1),
    ],
)
def test_answers_are_those_of_the_predictor(model, pixels, prompts, most):
    found = model.answers("photo", lambda: pixels, prompts.checked(300, 450))
    assert 1 <= len(found) <= most
    predictor = SamPredictor(load_segmenter("starter", "cpu"))
    predictor.set_image(pixels)
    points = np.array(prompts.points).reshape(-1, 3)
    logits, scores, _ = predictor.predict(
        points[:, :2] if len(points) else None,
        points[:, 2] if len(points) else None,
        None if prompts.box is None else np.array(prompts.box),
        multimask_output=most == 3,
        return_logits=True,
    )
    wanted = [i for i in np.argsort(-scores, kind="stable") if (logits[i] > 0).any()]
    assert len(found) == len(wanted)
    for answer, i in zip(found, wanted, strict=True):
        mask = rle.decode(rle.from_counts_string(answer.counts, 300, 450))
        assert (mask != (logits[i] > 0)).sum() <= 2  # on the threshold: sums in another order
        assert answer.area == mask.sum()
        assert answer.predicted_iou == pytest.approx(scores[i], abs=1e-5)
        stability = (logits[i] > 0.3).sum() / (logits[i] > -0.3).sum()
        assert answer.stability_score == pytest.approx(stability, abs=1e-3)


def test_the_last_images_stay_encoded_and_others_go(pixels, monkeypatch):
    monkeypatch.setattr(click_model, "_KEPT", 8)
    model, read = ClickModel("starter", "cpu"), []

    def of(name):
        return lambda: read.append(name) or pixels[:60, :80]

    for name in [*range(8), 0, *range(8, 10), 0, 1]:
        model.prepare(name, of(name))
    assert read == [*range(8), 8, 9, 1]  # 0 was asked for in between, 1 was not


def test_prompts_are_stored_with_sams_labels():
    prompts = Prompts(points=((1, 2, 1), (3, 4, 0)), box=(50, 60, 7, 8)).checked(100, 40)
    assert prompts.box == (7, 8, 40, 60)  # in order, and cut at the image's edge
    assert prompts.columns() == {
        "point_x": [1, 3, 7, 40],
        "point_y": [2, 4, 8, 60],
        "point_label": [1, 0, 2, 3],
    }
    with pytest.raises(UsageError, match="smaller than a pixel"):
        Prompts(box=(50, 1, 90, 9)).checked(100, 40)


def test_other_weights_than_the_datasets_are_refused(pixels):
    model = ClickModel("starter", "cpu", expected_sha256="0" * 64)
    with pytest.raises(CheckpointError):
        model.prepare("photo", lambda: pixels)


def test_a_model_that_does_not_fit_is_said_and_tried_again(pixels, monkeypatch):
    model = ClickModel("starter", "cpu")
    segmenter = model._loaded()

    def too_large(views):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    with monkeypatch.context() as patch:
        patch.setattr(segmenter, "encode", too_large)
        with pytest.raises(ModelFailure, match=r"starter does not fit .*--device cpu .*--model"):
            model.prepare("photo", lambda: pixels)
    model.prepare("photo", lambda: pixels)
