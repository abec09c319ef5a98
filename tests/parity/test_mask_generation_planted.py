"""Our records against segment-anything's own `SamAutomaticMaskGenerator`, both fed the same planted logits.

With the networks out of the way the comparison is exact and quick, so every setting is moved here, one by one and
together. `test_mask_generation_networks.py` does the same with networks in place.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from parity.planted import PlantedSegmenter, picture, planted_reference
from parity.reference import Records, SamAutomaticMaskGenerator, amg, assert_same_records

from data_engine.masks.generator import MaskGenerator

LANDSCAPE, PORTRAIT, TINY = (160, 240), (240, 160), (37, 61)
BASE: dict[str, Any] = {"points_per_side": 10, "stability_score_thresh": 0.6}
CROPS: dict[str, Any] = {**BASE, "points_per_side": 6, "crop_n_layers": 1}
CLEAN: dict[str, Any] = {**BASE, "min_mask_region_area": 200}
CLEAN_CROPS: dict[str, Any] = {**CROPS, "min_mask_region_area": 200, "box_nms_thresh": 0.3}

# (a setting, its value, the settings around it): each must change the result and agree with the reference.
ONE_BY_ONE = [
    ("points_per_side", 7, BASE),
    ("pred_iou_thresh", 0.0, BASE),
    ("pred_iou_thresh", 0.8, BASE),
    ("pred_iou_thresh", 0.99, BASE),
    ("stability_score_thresh", 0.0, BASE),
    ("stability_score_thresh", 0.8, BASE),
    ("stability_score_thresh", 0.95, BASE),
    ("stability_score_offset", 0.0, BASE),
    ("stability_score_offset", 0.5, BASE),
    ("stability_score_offset", 2.0, BASE),
    ("box_nms_thresh", 0.0, BASE),
    ("box_nms_thresh", 0.4, BASE),
    ("box_nms_thresh", 1.0, BASE),
    ("box_nms_thresh", 0.4, CROPS),
    ("crop_n_layers", 1, BASE),
    ("crop_n_layers", 2, CROPS),
    ("crop_nms_thresh", 0.0, CROPS),
    ("crop_nms_thresh", 0.4, CROPS),
    ("crop_nms_thresh", 1.0, CROPS),
    ("crop_overlap_ratio", 0.0, CROPS),
    ("crop_overlap_ratio", 0.2, CROPS),
    ("crop_overlap_ratio", 0.6, CROPS),
    ("crop_n_points_downscale_factor", 2, CROPS),
    ("crop_n_points_downscale_factor", 3, {**CROPS, "crop_n_layers": 1}),
    ("min_mask_region_area", 1, BASE),
    ("min_mask_region_area", 40, BASE),
    ("min_mask_region_area", 2000, BASE),
    ("min_mask_region_area", 200, CROPS),
    ("box_nms_thresh", 0.9, CLEAN),
    ("box_nms_thresh", 0.5, CLEAN),
]


def ours(shape: tuple[int, int], plant: dict[str, float] | None = None, **settings: Any) -> Records:
    segmenter = PlantedSegmenter(**plant or {})
    return MaskGenerator(segmenter, output_mode="coco_rle", **settings).generate(picture(*shape))


def theirs(shape: tuple[int, int], plant: dict[str, float] | None = None, **settings: Any) -> Records:
    model = planted_reference(**plant or {})
    return SamAutomaticMaskGenerator(model, output_mode="coco_rle", **settings).generate(picture(*shape))


def keys(records: Records) -> list[tuple[str, str]]:
    return [(record["segmentation"]["counts"], str(record["crop_box"])) for record in records]


def test_defaults() -> None:
    mine = ours(LANDSCAPE)
    assert assert_same_records(mine, theirs(LANDSCAPE)) == (len(mine), len(mine))
    assert len(mine) > 10


@pytest.mark.parametrize(("name", "value", "around"), ONE_BY_ONE, ids=lambda value: str(value)[:24])
def test_each_setting_does_what_it_does_in_the_reference(name: str, value: Any, around: dict[str, Any]) -> None:
    changed = {**around, name: value}
    mine = ours(LANDSCAPE, **changed)
    assert_same_records(mine, theirs(LANDSCAPE, **changed))
    if (name, value) != ("min_mask_region_area", 1):  # nothing is smaller than one pixel
        assert keys(mine) != keys(ours(LANDSCAPE, **around))


def test_last_suppression_uses_the_larger_threshold() -> None:
    for settings in ({**CLEAN, "box_nms_thresh": 1.0, "crop_nms_thresh": 0.3}, {**CLEAN_CROPS, "crop_nms_thresh": 1.0}):
        mine = ours(LANDSCAPE, **settings)
        assert_same_records(mine, theirs(LANDSCAPE, **settings))


@pytest.mark.parametrize("shape", [LANDSCAPE, PORTRAIT, (256, 256), TINY, (64, 500), (500, 64), (12, 9)], ids=str)
@pytest.mark.parametrize(("layers", "factor"), [(0, 1), (1, 2), (2, 1), (2, 2)])
def test_shapes_and_crops(shape: tuple[int, int], layers: int, factor: int) -> None:
    settings = {
        "points_per_side": 6,
        "stability_score_thresh": 0.5,
        "crop_n_layers": layers,
        "crop_n_points_downscale_factor": factor,
        "min_mask_region_area": 20,
    }
    assert_same_records(ours(shape, **settings), theirs(shape, **settings))


@pytest.mark.parametrize("layers", [0, 1])
def test_own_point_grids(layers: int) -> None:
    random = np.random.default_rng(5)
    grids = [random.random((count, 2)) for count in (37, 11)]
    settings = {"points_per_side": None, "stability_score_thresh": 0.5, "crop_n_layers": layers, "point_grids": grids}
    mine = ours(PORTRAIT, **settings)
    assert_same_records(mine, theirs(PORTRAIT, **settings))
    assert len(mine) > 5
    every_point = {tuple(record["point_coords"][0]) for record in mine if record["crop_box"] == [0, 0, 160, 240]}
    assert every_point <= {tuple(point) for point in (grids[0] * [[160, 240]]).tolist()}


def test_everything_at_once() -> None:
    settings = {
        "points_per_side": 13,
        "points_per_batch": 17,
        "pred_iou_thresh": 0.75,
        "stability_score_thresh": 0.55,
        "stability_score_offset": 0.8,
        "box_nms_thresh": 0.6,
        "crop_n_layers": 2,
        "crop_nms_thresh": 0.5,
        "crop_overlap_ratio": 0.25,
        "crop_n_points_downscale_factor": 2,
        "min_mask_region_area": 90,
    }
    mine = ours((173, 237), **settings)
    assert_same_records(mine, theirs((173, 237), **settings))
    assert len(mine) > 100


def test_nothing_filtered_keeps_empty_masks_too() -> None:
    settings = {"points_per_side": 8, "pred_iou_thresh": 0.0, "stability_score_thresh": 0.0, "crop_n_layers": 1}
    mine = ours(LANDSCAPE, {"roughness": 6.0}, **settings)
    assert_same_records(mine, theirs(LANDSCAPE, {"roughness": 6.0}, **settings))
    assert any(record["area"] == 0 for record in mine)
    assert any(np.isnan(record["stability_score"]) for record in mine)


def test_background_smaller_than_the_area_is_a_hole() -> None:
    """On a tiny image all that surrounds a mask, or all of an empty mask, counts as a small hole and is filled."""
    settings = {"points_per_side": 4, "pred_iou_thresh": 0.0, "stability_score_thresh": 0.0, "box_nms_thresh": 1.0}
    for area in (30, 150, 1000):
        mine = ours((16, 12), {"roughness": 6.0}, min_mask_region_area=area, **settings)
        assert_same_records(mine, theirs((16, 12), {"roughness": 6.0}, min_mask_region_area=area, **settings))


@pytest.mark.parametrize("threshold", [-1.5, 0.7])
def test_models_own_mask_threshold(threshold: float) -> None:
    segmenter, model = PlantedSegmenter(), planted_reference()
    segmenter.mask_threshold = model.mask_threshold = threshold
    settings = {**CROPS, "min_mask_region_area": 30}
    mine = MaskGenerator(segmenter, output_mode="coco_rle", **settings).generate(picture(*LANDSCAPE))
    yours = SamAutomaticMaskGenerator(model, output_mode="coco_rle", **settings).generate(picture(*LANDSCAPE))
    assert_same_records(mine, yours)
    assert keys(mine) != keys(ours(LANDSCAPE, **settings))


def test_all_output_modes() -> None:
    for mode in ("binary_mask", "uncompressed_rle", "coco_rle"):
        mine = MaskGenerator(PlantedSegmenter(), output_mode=mode, **CLEAN).generate(picture(*LANDSCAPE))
        yours = SamAutomaticMaskGenerator(planted_reference(), output_mode=mode, **CLEAN).generate(picture(*LANDSCAPE))
        assert len(mine) == len(yours) > 20
        for a, b in zip(mine, yours, strict=True):
            if mode == "binary_mask":
                assert a["segmentation"].dtype == b["segmentation"].dtype == bool
                np.testing.assert_array_equal(a["segmentation"], b["segmentation"])
            else:
                assert a["segmentation"] == b["segmentation"]


@pytest.mark.parametrize("fraction", [0.03, 0.1])
@pytest.mark.parametrize("layers", [0, 1])
def test_largest_area_is_the_reference_with_such_a_filter(fraction: float, layers: int) -> None:
    """SA-1B's rule that drops masks of 95 % of the image and more is applied before the suppression, in every crop."""

    class WithAreaFilter(SamAutomaticMaskGenerator):
        def _process_batch(self, points: Any, im_size: Any, crop_box: Any, orig_size: Any) -> Any:
            data = super()._process_batch(points, im_size, crop_box, orig_size)
            areas = [amg.area_from_rle(rle) for rle in data["rles"]]
            data.filter(data["iou_preds"].new_tensor(areas) < fraction * orig_size[0] * orig_size[1])
            return data

    settings = {**BASE, "crop_n_layers": layers}
    mine = ours(LANDSCAPE, max_mask_area_fraction=fraction, **settings)
    yours = WithAreaFilter(planted_reference(), output_mode="coco_rle", **settings).generate(picture(*LANDSCAPE))
    assert_same_records(mine, yours)
    assert 5 < len(mine) != len(ours(LANDSCAPE, **settings))


@pytest.mark.parametrize("area", [40, 300, 3000])
def test_dropping_small_masks_is_the_reference_with_such_a_filter(area: int) -> None:
    """A mask whose largest piece, holes filled, is below min_mask_region_area goes before the last suppression."""

    class WithoutSmallMasks(SamAutomaticMaskGenerator):
        @staticmethod
        def postprocess_small_regions(mask_data: Any, min_area: int, nms_thresh: float) -> Any:
            large = []
            for rle in mask_data["rles"]:
                filled, _ = amg.remove_small_regions(amg.rle_to_mask(rle), min_area, "holes")
                pieces, _ = amg.remove_small_regions(filled, min_area, "islands")
                large.append(pieces.sum() >= min_area)
            mask_data.filter(torch.tensor(large))
            return SamAutomaticMaskGenerator.postprocess_small_regions(mask_data, min_area, nms_thresh)

    ragged = {"roughness": 9.0}  # masks in pieces
    settings = {**BASE, "stability_score_thresh": 0.2, "min_mask_region_area": area}
    mine = ours(LANDSCAPE, ragged, drop_small_masks=True, **settings)
    reference = WithoutSmallMasks(planted_reference(**ragged), output_mode="coco_rle", **settings)
    assert_same_records(mine, reference.generate(picture(*LANDSCAPE)))
    kept = len(ours(LANDSCAPE, ragged, **settings))
    # At 40 pixels many masks lose an island and none is small as a whole: having a small piece is no reason to go.
    assert len(mine) == kept if area == 40 else 5 < len(mine) < kept
