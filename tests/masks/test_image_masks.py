from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycocotools import mask as coco

from data_engine.masks import rle
from data_engine.masks.image_masks import ImageMasks, MaskCounts


def image_masks(masks: np.ndarray, seed: int = 0) -> ImageMasks:
    """Columns for NxHxW bool masks, other facts at random."""
    random = np.random.default_rng(seed)
    count, height, width = masks.shape
    runs = [rle.encode(mask) for mask in masks]
    corners = random.integers(0, 50, (count, 2))
    return ImageMasks(
        height=height,
        width=width,
        counts=[rle.counts_string(one) for one in runs],
        boxes=np.array([rle.box(one) for one in runs], np.int64).reshape(-1, 4),
        area=masks.sum((1, 2)),
        predicted_iou=random.random(count, np.float32),
        stability_score=random.random(count, np.float32),
        points=random.random((count, 2)) * [width, height],
        crop_boxes=np.concatenate([corners, corners + random.integers(1, 50, (count, 2))], 1),
        crop_layer=random.integers(0, 3, count),
        filtered=MaskCounts(candidates=count),
    )


@given(st.integers(0, 5), st.integers(1, 30), st.integers(1, 30), st.integers(0, 10**6), st.floats(0, 1))
def test_records_are_the_columns(count: int, height: int, width: int, seed: int, density: float) -> None:
    masks = np.random.default_rng(seed).random((count, height, width)) < density
    found = image_masks(masks, seed)
    assert len(found) == count
    records = found.records()
    assert len(records) == count
    for i, record in enumerate(records):
        assert list(record) == [
            "segmentation",
            "area",
            "bbox",
            "predicted_iou",
            "point_coords",
            "stability_score",
            "crop_box",
        ]
        np.testing.assert_array_equal(record["segmentation"], masks[i])
        np.testing.assert_array_equal(found.mask(i), masks[i])
        assert record["area"] == masks[i].sum()
        x0, y0, x1, y1 = found.boxes[i]
        assert record["bbox"] == [x0, y0, x1 - x0, y1 - y0]
        x0, y0, x1, y1 = found.crop_boxes[i]
        assert record["crop_box"] == [x0, y0, x1 - x0, y1 - y0]
        assert record["predicted_iou"] == found.predicted_iou[i]
        assert record["stability_score"] == found.stability_score[i]
        assert record["point_coords"] == [found.points[i].tolist()]


def test_run_lengths_in_records() -> None:
    masks = np.random.default_rng(1).random((3, 17, 23)) < 0.4
    found = image_masks(masks)
    for mode in ("coco_rle", "uncompressed_rle"):
        for record, mask in zip(found.records(mode), masks, strict=True):
            segmentation = record["segmentation"]
            assert segmentation["size"] == [17, 23]
            if mode == "uncompressed_rle":
                assert sum(segmentation["counts"]) == mask.size
                segmentation = coco.frPyObjects(segmentation, 17, 23)
            np.testing.assert_array_equal(coco.decode(segmentation).astype(bool), mask)


@pytest.mark.parametrize("mode", ["coco_rle", "uncompressed_rle"])
def test_records_are_json(mode: str) -> None:
    records = image_masks(np.ones((2, 4, 5), bool)).records(mode)  # type: ignore[arg-type]
    assert json.loads(json.dumps(records)) == records


def test_counts_as_dict() -> None:
    counts = MaskCounts(candidates=9, rejected_iou=4, rejected_nms=2)
    assert counts.as_dict() == {
        "candidates": 9,
        "rejected_iou": 4,
        "rejected_stability": 0,
        "rejected_edge": 0,
        "rejected_area": 0,
        "rejected_nms": 2,
    }
