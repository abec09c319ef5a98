"""What a version of duplicates leaves out, images and masks: by every way of reading, and nothing else."""

from __future__ import annotations

import pyarrow.compute as pc
import pytest
from dataset.exported import OnePicture, leave_out
from dataset.small_dataset import build

from data_engine.dataset.reader import MaskDataset
from data_engine.dataset.torch_dataset import MaskImages

GONE = [("a/0-0.jpg", 1), ("a/0-2.jpg", 0), ("a/0-2.jpg", 3), ("b/1-0.jpg", 1)]
IMAGE_GONE = "b/0-0.jpg"


def keys(images):
    return [(image.image_id, mask) for image in images for mask in image.masks["mask_id"].to_pylist()]


def pairs(table):
    return list(zip(table["image_id"].to_pylist(), table["mask_id"].to_pylist(), strict=True))


@pytest.fixture
def datasets(tmp_path):
    """The dataset, and the same without its duplicates."""
    build(tmp_path)
    whole = MaskDataset(tmp_path)
    leave_out(whole, "v1", [IMAGE_GONE], GONE)
    return whole, MaskDataset(tmp_path, deduplicated=True)


def test_every_way_of_reading_leaves_out_the_same(datasets):
    whole, dataset = datasets
    wanted = [key for key in keys(whole) if key not in GONE and key[0] != IMAGE_GONE]
    assert len(wanted) == len(keys(whole)) - len(GONE) - 2
    assert keys(dataset) == wanted
    assert keys(dataset.get_many([image.image_id for image in dataset])) == wanted
    assert keys([dataset["a/0-2.jpg"]]) == [("a/0-2.jpg", 1), ("a/0-2.jpg", 2)]
    assert pairs(dataset.masks()) == wanted
    assert pairs(dataset.masks(columns=["image_id", "mask_id"])) == wanted
    assert pairs(dataset.arrow("masks").to_table(columns=["image_id", "mask_id"])) == wanted
    assert dataset.masks(columns=["area"]).schema.names == ["area"]
    assert dataset.masks(columns=["area"]).num_rows == len(wanted)
    large = [m["area"] for image in dataset for m in image.masks.to_pylist() if m["area"] > 20]
    assert dataset.masks(["area"], pc.field("area") > 20)["area"].to_pylist() == large
    assert dataset.masks(["area"], pc.field("area") < 0).num_rows == 0
    assert dataset.images()["image_id"].to_pylist() == [image.image_id for image in dataset]
    assert dataset.images().schema.equals(whole.images().schema)
    assert [key for batch in dataset.scan("masks", ["image_id", "mask_id"]) for key in pairs(batch)] == wanted
    rows = [image for record in dataset.commits for image in dataset.rows(record, 0, 99)]
    assert [key for key in keys(rows) if key[0] != IMAGE_GONE] == wanted
    items = MaskImages(dataset.root, OnePicture(), deduplicated=True)
    assert [(item["image_id"], mask) for item in items for mask in item["mask_ids"].tolist()] == wanted


def test_sql_leaves_out_the_same_and_shows_them(datasets):
    pytest.importorskip("duckdb")
    whole, dataset = datasets
    query = "select image_id, mask_id from masks order by all"
    assert dataset.duckdb().sql(query).fetchall() == sorted(keys(dataset))
    assert whole.duckdb().sql(query).fetchall() == sorted(keys(whole))
    gone = "select image_id, mask_id from mask_duplicates order by all"
    assert dataset.duckdb().sql(gone).fetchall() == whole.duckdb().sql(gone).fetchall() == GONE


def test_a_version_without_such_masks_leaves_out_none(datasets):
    whole, _ = datasets
    leave_out(whole, "v2", [])
    dataset = MaskDataset(whole.root, deduplicated="v2")
    assert keys(dataset) == keys(whole)
    assert dataset.duckdb().sql("from mask_duplicates").fetchall() == []
