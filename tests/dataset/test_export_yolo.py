"""YOLO segmentation: read by supervision, and drawn back from its text."""

from __future__ import annotations

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from dataset.exported import ROTATED, OnePicture, build_blobs, export, picture
from dataset.small_dataset import HEIGHT, WIDTH
from pycocotools import mask as coco
from scipy import ndimage

from data_engine.dataset.export.yolo import YoloSegmentation


@pytest.fixture
def dataset(tmp_path, monkeypatch):
    return build_blobs(tmp_path / "masks", monkeypatch)


def polygons(text):
    for line in text.splitlines():
        category, *numbers = line.split(" ")
        yield int(category), np.array(numbers, float).reshape(-1, 2)


def test_a_line_is_a_mask_in_shares_of_the_image(dataset, tmp_path):
    export(dataset, tmp_path / "out", YoloSegmentation(tolerance=0))
    index = pq.read_table(tmp_path / "out/index.parquet").to_pylist()
    assert len(index) == 8
    for row in index:
        image = dataset[row["image_id"]]
        assert (tmp_path / "out" / row["file"]).read_bytes() == picture()
        label = tmp_path / "out" / row["file"].replace("images/", "labels/").replace(".jpg", ".txt")
        lines = list(polygons(label.read_text()))
        assert len(lines) == len(image)
        for i, (category, polygon) in enumerate(lines):
            assert category == 0
            assert 0 <= polygon.min() <= polygon.max() <= 1
            ring = (polygon * (WIDTH, HEIGHT)).reshape(-1).tolist()
            drawn = coco.decode(coco.frPyObjects([ring], HEIGHT, WIDTH)[0]).astype(bool)
            np.testing.assert_array_equal(drawn, ndimage.binary_fill_holes(image.mask(i)))
    described = yaml.safe_load((tmp_path / "out/data.yaml").read_text())
    assert described == {"train": "images", "val": "images", "names": {0: "object"}}


def test_images_can_be_left_out(dataset, tmp_path):
    report = export(dataset, tmp_path / "out", YoloSegmentation(with_images=False), source=None)
    assert report.files == 8
    assert not (tmp_path / "out/images").exists()


def test_images_that_no_jpeg_can_hold_are_counted(dataset, tmp_path, monkeypatch):
    monkeypatch.setattr("data_engine.dataset.export.sa1b.JPEG_MAX_SIDE", WIDTH - 1)
    report = export(dataset, tmp_path / "out", YoloSegmentation())
    assert (report.images, report.too_large) == (0, 8)
    without = export(dataset, tmp_path / "without", YoloSegmentation(with_images=False), source=None)
    assert (without.images, without.too_large) == (8, 0)


def test_an_image_that_exif_turns_is_written_as_it_was_masked(dataset, tmp_path):
    report = export(dataset, tmp_path / "out", YoloSegmentation(), source=OnePicture(picture(exif=ROTATED)))
    assert (report.images, report.copied) == (8, 0)


def test_supervision_reads_the_folder(dataset, tmp_path):
    supervision = pytest.importorskip("supervision")
    export(dataset, tmp_path / "out", YoloSegmentation(tolerance=0.5))
    loaded = supervision.DetectionDataset.from_yolo(
        str(tmp_path / "out/images"), str(tmp_path / "out/labels"), str(tmp_path / "out/data.yaml"), force_masks=True
    )
    assert loaded.classes == ["object"]
    files = {row["file"]: row["image_id"] for row in pq.read_table(tmp_path / "out/index.parquet").to_pylist()}
    for path, _, detections in loaded:
        image = dataset[files[path.removeprefix(f"{tmp_path}/out/")]]
        assert len(detections) == len(image)
        for i, mask in enumerate(np.asarray(detections.mask)):
            covered = ndimage.binary_fill_holes(image.mask(i))
            if ndimage.label(covered, np.ones((3, 3)))[1] == 1:  # OpenCV draws borders, and so seams between pieces
                assert not (mask & ~ndimage.binary_dilation(covered, np.ones((3, 3)), iterations=2)).any()
            assert (mask & covered).sum() > 0.9 * covered.sum()
