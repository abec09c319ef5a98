"""Label Studio's brush strokes, read by Label Studio's own converter."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from dataset.exported import build_blobs, export, with_masks
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from pycocotools import mask as coco

from data_engine.dataset.export.label_studio import LabelStudio, brush_rle
from data_engine.errors import UsageError


@pytest.fixture(scope="module")
def brush():
    """label_studio_sdk.converter.brush alone: the package's other modules want dozens of other packages."""
    package = importlib.util.find_spec("label_studio_sdk")
    if package is None:
        pytest.skip("label-studio-sdk is not installed")
    path = Path(package.origin).parent / "converter/brush.py"
    spec = importlib.util.spec_from_file_location("brush", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def encoded(mask):
    return brush_rle(list(mask.shape), coco.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"].decode())


def decoded(brush, rle, shape):
    return brush.decode_rle(list(rle)).reshape(*shape, 4)


@given(mask=arrays(bool, array_shapes(min_dims=2, max_dims=2, max_side=20)))
def test_label_studio_decodes_what_was_encoded(brush, mask):
    layers = decoded(brush, encoded(mask), mask.shape)
    for channel in range(4):
        np.testing.assert_array_equal(layers[:, :, channel], 255 * mask)


@given(start=st.integers(0, 70_000), length=st.integers(1, 70_000))
def test_runs_of_any_length(brush, start, length):
    mask = np.zeros(140_000, bool)
    mask[start : start + length] = True
    mask = mask.reshape(350, 400)
    np.testing.assert_array_equal(decoded(brush, encoded(mask), mask.shape)[:, :, 3] > 0, mask)


def test_it_is_what_label_studio_itself_writes(brush):
    """Its encoder may cut runs elsewhere; what it makes of ours and of its own must be one picture."""
    mask = np.random.default_rng(0).random((30, 40)) > 0.5
    theirs = brush.encode_rle(np.repeat(255 * mask.ravel().astype(np.uint8), 4))
    np.testing.assert_array_equal(brush.decode_rle(theirs), brush.decode_rle(list(encoded(mask))))


def test_tasks_carry_the_masks_as_predictions(brush, tmp_path, monkeypatch):
    dataset = build_blobs(tmp_path / "masks", monkeypatch)
    export(dataset, tmp_path / "out", LabelStudio(images_per_file=3, image_url="https://host/{image_id}?x=1"))
    tasks = [task for path in sorted((tmp_path / "out").glob("tasks_*")) for task in json.loads(path.read_text())]
    images = with_masks(dataset)
    assert len(tasks) == len(images)
    for task, image in zip(tasks, images, strict=True):
        assert task["data"]["image"] == f"https://host/{image.image_id}?x=1"
        (prediction,) = task["predictions"]
        results = [
            {**stroke["value"], **{key: stroke[key] for key in ("type", "original_width", "original_height")}}
            for stroke in prediction["result"]
        ]
        layers = list(brush.decode_from_annotation("tag", results).values())
        assert len(layers) == len(image)
        for i, layer in enumerate(layers):
            np.testing.assert_array_equal(layer > 0, image.mask(i))
    interface = ElementTree.parse(tmp_path / "out/label_config.xml").getroot()
    brushes = interface.find("BrushLabels")
    stroke = tasks[0]["predictions"][0]["result"][0]
    assert (brushes.get("name"), brushes.get("toName")) == (stroke["from_name"], stroke["to_name"])
    assert [label.get("value") for label in brushes] == ["object"]


def test_an_address_that_is_the_same_for_all_is_refused():
    with pytest.raises(UsageError, match="image_id"):
        LabelStudio(image_url="https://host/image.jpg")
