"""COCO files, read by the libraries that people read them with."""

from __future__ import annotations

import json

import numpy as np
import pytest
from dataset import small_dataset
from dataset.exported import build_blobs, export, picture, with_masks
from pycocotools.coco import COCO
from scipy import ndimage

from data_engine.dataset.export.coco import Coco, CocoPolygons
from data_engine.dataset.export.labels import categories_of
from data_engine.dataset.reader import MaskDataset


@pytest.fixture
def dataset(tmp_path, monkeypatch):
    return build_blobs(tmp_path / "masks", monkeypatch)


def read(folder):
    return [COCO(str(path)) for path in sorted(folder.glob("instances_*.json"))]


def test_pycocotools_reads_the_masks_that_were_stored(dataset, tmp_path):
    export(dataset, tmp_path, Coco(images_per_file=3))
    files = read(tmp_path)
    assert [len(file.imgs) for file in files] == [3, 3, 2]
    images = {image.image_id: image for image in with_masks(dataset)}
    for file in files:
        assert file.loadCats(file.getCatIds()) == [{"id": 1, "name": "object"}]
        for entry in file.imgs.values():
            image = images.pop(entry["file_name"])
            annotations = file.loadAnns(file.getAnnIds(entry["id"], iscrowd=False))
            assert len(annotations) == len(image)
            for i, annotation in enumerate(annotations):
                mask = file.annToMask(annotation).astype(bool)
                np.testing.assert_array_equal(mask, image.mask(i))
                ys, xs = np.nonzero(mask)
                assert annotation["bbox"] == [xs.min(), ys.min(), np.ptp(xs) + 1, np.ptp(ys) + 1]
                assert annotation["area"] == mask.sum()
                assert annotation["score"] == annotation["predicted_iou"] == image.masks["predicted_iou"][i].as_py()
                assert annotation["stability_score"] == image.masks["stability_score"][i].as_py()
    assert not images
    ids = [annotation for file in files for annotation in file.anns]
    assert len(set(ids)) == dataset.totals.masks


def test_pycocotools_draws_the_polygons_like_the_masks(dataset, tmp_path):
    export(dataset, tmp_path, CocoPolygons(tolerance=0))
    (file,) = read(tmp_path)
    for entry in file.imgs.values():
        image = dataset[entry["file_name"]]
        for i, annotation in enumerate(file.loadAnns(file.getAnnIds(entry["id"]))):
            expected = ndimage.binary_fill_holes(image.mask(i))
            np.testing.assert_array_equal(file.annToMask(annotation), expected)


def test_a_labelled_run_has_its_labels_as_categories(tmp_path, monkeypatch):
    plain = small_dataset.mask_columns

    def labelled(rng, count):
        columns = plain(rng, count)
        if columns is not None:
            columns["label"] = ["dog", None, "cat", "dog", "cat"][:count]
            columns["label_score"] = [0.5, None, 0.25, 0.5, None][:count]
        return columns

    monkeypatch.setattr(small_dataset, "mask_columns", labelled)
    small_dataset.build(tmp_path / "masks")
    dataset = MaskDataset(str(tmp_path / "masks"))
    assert categories_of(dataset) == ("cat", "dog", "object")
    export(dataset, tmp_path / "out", Coco())
    (file,) = read(tmp_path / "out")
    names = {category["id"]: category["name"] for category in file.loadCats(file.getCatIds())}
    assert names == {1: "cat", 2: "dog", 3: "object"}
    for annotation in file.anns.values():
        image = dataset[file.imgs[annotation["image_id"]]["file_name"]]
        counts = image.masks["counts"].to_pylist().index(annotation["segmentation"]["counts"])
        label, score = image.masks["label"][counts].as_py(), image.masks["label_score"][counts].as_py()
        assert names[annotation["category_id"]] == (label or "object")
        assert annotation["score"] == (score if score is not None else annotation["predicted_iou"])


@pytest.mark.parametrize("format", [Coco(), CocoPolygons(tolerance=0)], ids=str)
def test_supervision_reads_the_file(dataset, tmp_path, format):
    supervision = pytest.importorskip("supervision")
    export(dataset, tmp_path / "out", format)
    for image in dataset:
        (tmp_path / "photos" / image.image_id).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "photos" / image.image_id).write_bytes(picture())
    loaded = supervision.DetectionDataset.from_coco(
        str(tmp_path / "photos"), str(tmp_path / "out/instances_00000.json"), force_masks=True
    )
    assert loaded.classes == ["object"]
    count = 0
    for path, _, detections in loaded:
        image = dataset[path.removeprefix(f"{tmp_path}/photos/")]
        assert len(detections) == len(image)
        for i, mask in enumerate(np.asarray(detections.mask)):
            expected = image.mask(i) if isinstance(format, Coco) else ndimage.binary_fill_holes(image.mask(i))
            different = (mask != expected).sum()
            # supervision draws polygons with OpenCV, which takes their border for part of them
            assert different == 0 if isinstance(format, Coco) else different < 0.5 * expected.sum()
        count += 1
    assert count == 8


def test_a_file_is_valid_json_with_one_annotation_a_line(dataset, tmp_path):
    """So that it can be looked at and searched with ordinary tools."""
    export(dataset, tmp_path, Coco())
    text = (tmp_path / "instances_00000.json").read_text()
    assert len(json.loads(text)["annotations"]) == dataset.totals.masks
    assert sum('"segmentation"' in line for line in text.splitlines()) == dataset.totals.masks
