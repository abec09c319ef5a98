"""The measurement of clicks: where it clicks, what it counts, and that the baselines are worth comparing with."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from train.tiny_training import ARCHITECTURE

from data_engine.sam.predictor import SamPredictor
from data_engine.sam.segmenter import SamSegmenter
from data_engine.train.__main__ import new_model
from data_engine.train.evaluate import bsds, coco, deepest_point, felzenszwalb_answers, flood_answers, iou, measure


@pytest.fixture
def quarters() -> tuple[np.ndarray, np.ndarray]:
    """A picture of four flat colours, and its regions."""
    ids = np.array([[1, 2], [3, 4]]).repeat(40, 0).repeat(50, 1)
    colours = np.array([[0, 0, 0], [200, 30, 30], [30, 200, 30], [40, 40, 220], [240, 240, 240]], np.uint8)
    return colours[ids], np.stack([ids == number for number in (1, 2, 3, 4)])


def test_the_deepest_point_is_the_middle():
    region = np.zeros((50, 80), bool)
    region[10:21, 30:71] = True
    x, y = deepest_point(region)
    assert y == 15
    assert 35 <= x <= 65


def test_the_border_of_the_image_bounds_a_region():
    assert deepest_point(np.ones((11, 11), bool)) == (5, 5)


def test_iou_broadcasts_masks_against_a_region():
    region = np.zeros((4, 4), bool)
    region[:2] = True
    masks = np.stack([region, ~region, np.ones_like(region)])
    np.testing.assert_allclose(iou(masks, region), [1, 0, 0.5])


def test_baselines_find_flat_colours(quarters):
    pixels, regions = quarters
    clicks = np.array([deepest_point(region) for region in regions])
    assert felzenszwalb_answers(pixels, regions, clicks).min() > 0.9
    assert flood_answers(pixels, regions, clicks).min() == 1


def test_the_best_of_three_is_no_worse_than_the_chosen_one(quarters):
    torch.manual_seed(0)
    predictor = SamPredictor(SamSegmenter(new_model(ARCHITECTURE), torch.device("cpu"), "reference"))
    result = measure(predictor, iter([quarters]))
    assert (result["images"], result["clicks"]) == (1, 4)
    assert 0 <= result["model_highest_predicted_iou"] <= result["model_best_of_three"] <= 1


def test_annotations_become_regions_without_specks_and_training_photographs(quarters, tmp_path: Path):
    pixels, regions = quarters
    ids = (regions * np.array([1, 2, 3, 4])[:, None, None]).sum(0).astype(np.uint16)
    ids[0, 0] = 9  # one pixel
    (tmp_path / "images").mkdir()
    (tmp_path / "segments").mkdir()
    for name in ("a.jpg", "b.jpg"):
        Image.fromarray(pixels).save(tmp_path / "images" / name)
    Image.fromarray(ids).save(tmp_path / "segments" / "a_1.png")
    Image.fromarray(ids).save(tmp_path / "segments" / "b_1.png")
    assert [len(found) for _, found in bsds(tmp_path)] == [4, 4]

    boxes = [[0, 0, 50, 40], [0, 0, 1, 1]]
    outlines = [[x, y, x + w, y, x + w, y + h, x, y + h] for x, y, w, h in boxes]
    annotations = [
        {"id": 2 * image + k, "image_id": image, "category_id": 1, "iscrowd": 0, "segmentation": [outlines[k]]}
        for image in (1, 2)
        for k in (0, 1)
    ]
    images = [{"id": i, "file_name": name, "height": 80, "width": 100} for i, name in ((1, "a.jpg"), (2, "b.jpg"))]
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "block"}]}
    (tmp_path / "instances.json").write_text(json.dumps(content))
    found = list(coco(tmp_path, leave_out={"a.jpg"}))
    assert len(found) == 1
    np.testing.assert_array_equal(found[0][1], regions[:1])
