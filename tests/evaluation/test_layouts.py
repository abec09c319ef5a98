"""Which reader a layout gets, one of our own datasets among them, and what is said where there is nothing to read."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from dataset.small_dataset import HEIGHT, WIDTH, build
from evaluation.stripes import ids, write_picture
from PIL import Image

from data_engine.dataset.reader import MaskDataset
from data_engine.errors import SourceError, UsageError
from data_engine.evaluation.layouts import open_ground_truth
from data_engine.masks import rle


def id_maps(folder: Path, *names: str) -> Path:
    (folder / "segments").mkdir(parents=True)
    for name in names:
        write_picture(folder / f"images/{name}.png")
        Image.fromarray(ids()).save(folder / f"segments/{name}.png")
    return folder


def coco_file(path: Path) -> Path:
    image = {"id": 1, "file_name": "a.png", "height": 4, "width": 4}
    annotation = {"id": 1, "image_id": 1, "segmentation": [[0, 0, 4, 0, 4, 4]]}
    path.write_text(json.dumps({"images": [image], "annotations": [annotation]}))
    return path


def test_a_dataset_is_ground_truth(tmp_path):
    build(tmp_path / "masks", slices=1)
    dataset = MaskDataset(str(tmp_path / "masks"))
    with_masks = [image for image in dataset if len(image)]
    for image in with_masks[1:]:
        path = tmp_path / "photos" / image.image_id
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (WIDTH, HEIGHT)).save(path)
    truth = open_ground_truth(str(tmp_path / "photos"), str(tmp_path / "masks"))
    assert (truth.kind, truth.without) == ("dataset", 1)
    found = list(truth.images())
    assert [image.image_id for image in found] == sorted(image.image_id for image in with_masks[1:])
    for image in found:
        expected = dataset[image.image_id]
        assert len(image.masks) == len(expected)
        for i, runs in enumerate(image.masks):
            np.testing.assert_array_equal(rle.decode(runs), expected.mask(i))


def test_images_of_the_training_are_left_out_under_their_name_there(tmp_path):
    truth = open_ground_truth(str(id_maps(tmp_path / "data", "1", "2", "3")))
    train = tmp_path / "train"
    train.mkdir()
    (train / "1.png").touch()
    (train / "coco-2.png").touch()
    assert [image.image_id for image in truth.leave_out(train).images()] == ["3.png"]
    (train / "3.png").touch()
    with pytest.raises(UsageError, match="no image of "):
        truth.leave_out(train)


def test_a_limit_reads_no_further(tmp_path):
    folder = id_maps(tmp_path, "1", "2")
    (folder / "images/2.png").write_bytes(b"not a picture")
    truth = open_ground_truth(str(folder))
    assert len(list(truth.images(limit=1))) == 1
    with pytest.raises(SourceError, match=r"2.png is no picture that can be measured on"):
        list(truth.images())


def test_an_image_that_cannot_be_used_is_answered_with_why_and_the_others_are_read(tmp_path):
    folder = id_maps(tmp_path, "1", "2", "3", "4", "5")
    (folder / "images/1.png").write_bytes(b"not a picture")
    (folder / "segments/2.png").write_bytes(b"no map")
    Image.new("L", (7, 7), 1).save(folder / "segments/3.png")
    truth = open_ground_truth(str(folder))
    (folder / "images/4.png").unlink()
    *unusable, usable = truth.read()
    assert [type(error) for error in unusable] == [SourceError] * 4
    for error, cause in zip(
        unusable,
        (
            r"1\.png is no picture",
            r"2\.png cannot be read as PNG",
            r"its masks in .* are 7x7",
            r"4\.png cannot be read:",
        ),
        strict=True,
    ):
        assert re.search(cause, str(error))
    assert usable.image_id == "5.png"


def test_what_is_missing_is_said(tmp_path):
    with pytest.raises(UsageError, match="give a folder of photographs"):
        open_ground_truth(str(tmp_path / "nowhere"))
    with pytest.raises(UsageError, match="memory://nowhere is not a folder"):
        open_ground_truth("memory://nowhere")
    with pytest.raises(UsageError, match=r"a signed link opens one file.*s3://"):
        open_ground_truth("https://store/photos?sig=5ec2e7", str(coco_file(tmp_path / "one.json")))
    with pytest.raises(UsageError, match="say where the masks are with --ground-truth"):
        open_ground_truth(str(tmp_path))
    with pytest.raises(SourceError, match=r"nowhere.json cannot be read"):
        open_ground_truth(str(tmp_path), str(tmp_path / "nowhere.json"))
    with pytest.raises(SourceError, match="is no ground truth"):
        open_ground_truth(str(tmp_path), str(tmp_path / "nowhere"))
    folder = id_maps(tmp_path / "data", "1")
    shutil.move(folder / "segments/1.png", folder / "segments/2.png")
    with pytest.raises(SourceError, match="check that the names are the same"):
        open_ground_truth(str(folder))
