"""Id maps: the smaller mask on top, and what that hides."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from dataset.exported import build_blobs, export
from PIL import Image

from data_engine.dataset.export.id_maps import MAX_ID, IdMaps, id_map
from data_engine.dataset.reader import DatasetImage
from data_engine.errors import DatasetError


@pytest.fixture
def dataset(tmp_path, monkeypatch):
    return build_blobs(tmp_path / "masks", monkeypatch)


def test_a_pixel_has_the_id_of_its_smallest_mask(dataset, tmp_path):
    export(dataset, tmp_path / "out", IdMaps())
    index = pq.read_table(tmp_path / "out/index.parquet").to_pylist()
    assert len(index) == 8
    hidden = 0
    for row in index:
        image = dataset[row["image_id"]]
        picture = Image.open(tmp_path / "out" / row["file"])
        assert picture.mode == "I;16"
        ids = np.asarray(picture)
        record = json.loads((tmp_path / "out" / row["file"].replace(".png", ".json")).read_text())
        masks = np.stack([image.mask(i) for i in range(len(image))])
        areas = masks.sum((1, 2))
        for i, entry in enumerate(record["ids"]):
            seen = ids == entry["id"]
            assert not (seen & ~masks[i]).any()
            assert entry["visible_area"] == seen.sum()
            assert entry["area"] == areas[i]
            on_top = ids[masks[i] & ~seen].astype(int) - 1
            assert (areas[on_top] <= areas[i]).all()
            hidden += int(areas[i] - seen.sum())
        np.testing.assert_array_equal(ids > 0, masks.any(0))
    whole = json.loads((tmp_path / "out/overlap.json").read_text())
    assert whole["hidden_pixels"] == hidden > 0
    assert whole["masks"] == dataset.totals.masks


def test_more_masks_than_sixteen_bits_can_number_are_refused(dataset):
    image = next(iter(dataset))
    many = DatasetImage(image.row, pa.concat_tables([image.masks] * (MAX_ID // len(image) + 1)))
    with pytest.raises(DatasetError, match=r"65,535.*--min-area"):
        id_map(many)


def test_ids_above_a_byte_survive(dataset):
    image = next(iter(dataset))
    many = DatasetImage(image.row, pa.concat_tables([image.masks] * 200))
    ids, visible = id_map(many)
    assert ids.dtype == np.uint16
    assert visible.sum() == (ids > 0).sum()
    assert ids.max() > 255
