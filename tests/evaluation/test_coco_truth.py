"""COCO's JSON as ground truth: every form of outline, crowds, and files that are broken."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from evaluation.stripes import SIDE, regions, write_picture
from pycocotools import mask as coco

from data_engine.errors import SourceError
from data_engine.evaluation.layouts import open_ground_truth
from data_engine.masks import rle
from data_engine.train.data.labelled import DataFilters, open_training_data


def compressed(mask: np.ndarray) -> dict:
    found = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": found["size"], "counts": found["counts"].decode()}


def uncompressed(mask: np.ndarray) -> dict:
    return {"size": list(mask.shape), "counts": rle.encode(mask).counts.tolist()}


def outline(mask: np.ndarray) -> list[list[float]]:
    columns = np.flatnonzero(mask[0])
    x0, x1 = int(columns[0]), int(columns[-1]) + 1
    return [[x0, 0, x1, 0, x1, SIDE, x0, SIDE]]


def annotation(segmentation: object, **more: object) -> dict:
    return {"id": 7, "image_id": 1, "category_id": 1, "iscrowd": 0, "segmentation": segmentation, **more}


def write(folder: Path, annotations: list[dict], **more: object) -> Path:
    write_picture(folder / "images/a.png")
    image = {"id": 1, "file_name": "a.png", "height": SIDE, "width": SIDE, **more}
    content = {"images": [image], "annotations": annotations, "categories": [{"id": 1, "name": "stripe"}]}
    (folder / "instances.json").write_text(json.dumps(content))
    return folder


def test_every_form_of_outline_is_the_same_mask(tmp_path):
    first, second, third, fourth = regions()
    folder = write(
        tmp_path,
        [
            annotation(outline(first)),
            annotation(compressed(second)),
            annotation(uncompressed(third)),
            annotation(uncompressed(fourth), iscrowd=1),
        ],
    )
    (image,) = open_ground_truth(str(folder)).images()
    assert image.image_id == "a.png"
    assert image.pixels.shape == (SIDE, SIDE, 3)
    for runs, mask in zip(image.masks, (first, second, third), strict=True):
        np.testing.assert_array_equal(rle.decode(runs), mask)
    np.testing.assert_array_equal(rle.decode(image.crowds[0]), fourth)


def test_images_that_are_not_there_are_counted_and_those_without_objects_are_passed_over(tmp_path):
    folder = write(tmp_path, [annotation(compressed(mask)) for mask in regions()])
    content = json.loads((folder / "instances.json").read_text())
    content["images"] += [
        {"id": 2, "file_name": "gone.png", "height": 4, "width": 4},
        {"id": 3, "file_name": "empty.png", "height": 4, "width": 4},
    ]
    content["annotations"].append(annotation([[0, 0, 2, 0, 2, 2]], image_id=2))
    (folder / "instances.json").write_text(json.dumps(content))
    truth = open_ground_truth(str(folder))
    assert (len(truth.entries), truth.without) == (1, 1)


@pytest.mark.parametrize(
    ("segmentation", "cause"),
    [
        ([[0, 0, 5, float("nan"), 5, 5]], "annotation 7 has no usable segmentation .a point of a polygon is no number"),
        ([["a", 0, 5, 0, 5, 5]], "annotation 7 has no usable segmentation"),
        ({"size": [4, 4], "counts": [16]}, "its size is"),
        ({"size": [SIDE, SIDE], "counts": [5, 5]}, "sum of the counts"),
        ({"size": [SIDE, SIDE], "counts": "33"}, "sum of run lengths"),
        ({"size": [SIDE, SIDE], "counts": [-5, 5]}, "no usable segmentation"),
        ({"size": [SIDE, SIDE]}, "no usable segmentation"),
        ("x", "no usable segmentation"),
    ],
)
def test_a_broken_outline_names_the_file_and_the_annotation(tmp_path, segmentation, cause):
    folder = write(tmp_path, [annotation(segmentation)])
    with pytest.raises(SourceError, match=cause) as caught:
        list(open_ground_truth(str(folder)).images())
    assert "instances.json" in str(caught.value)


@pytest.mark.parametrize("segmentation", [None, [], [[]], [[0, 0, 5, 5]], {}, [0, 0, 5, 0, 5, 5]])
def test_annotations_without_an_outline_are_left_out_and_the_others_used(tmp_path, caplog, segmentation):
    (first, *_) = regions()
    folder = write(
        tmp_path, [annotation(segmentation), annotation(compressed(first)), annotation([[1, 1], *outline(first)])]
    )
    (image,) = open_ground_truth(str(folder)).images()
    assert [int(runs.area()) for runs in image.masks] == [int(first.sum())] * 2
    assert "instances.json: 1 of its 3 annotations have no outline (a box alone" in caplog.text
    data = open_training_data(str(folder), DataFilters())
    assert [len(image.masks) for image in data.epoch(0, seed=0)] == [2]


def test_a_file_without_any_object_says_what_its_annotations_are(tmp_path):
    first, second, *_ = regions()
    crowds = [annotation(compressed(mask), iscrowd=1) for mask in (first, second)]
    folder = write(tmp_path, [*crowds, annotation([])])
    with pytest.raises(
        SourceError, match=r"none of its 3 annotations outlines an object: 1 have no outline .*, 2 are cr"
    ):
        open_ground_truth(str(folder))


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        ("{", "is not JSON"),
        ("[]", "needs the lists"),
        ('{"images": []}', "needs the lists"),
        ('{"images": [{"id": 1}], "annotations": []}', "lacks file_name"),
        ('{"images": [], "annotations": []}', "no image of"),
    ],
)
def test_a_broken_file_is_named(tmp_path, content, cause):
    folder = write(tmp_path, [])
    (folder / "instances.json").write_text(content)
    with pytest.raises(SourceError, match=cause) as caught:
        open_ground_truth(str(folder))
    assert "instances.json" in str(caught.value)


def test_an_image_of_another_size_than_its_masks_is_named(tmp_path):
    folder = write(tmp_path, [annotation([[0, 0, 50, 0, 50, 50]])], height=100, width=200)
    with pytest.raises(SourceError, match=r"a.png is 256x256 pixels, its masks in .* are 200x100"):
        list(open_ground_truth(str(folder)).images())
