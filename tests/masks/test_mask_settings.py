from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest
from parity.planted import PlantedSegmenter
from parity.reference import SamAutomaticMaskGenerator

from data_engine.config import load_config
from data_engine.errors import ConfigError, UsageError
from data_engine.masks.generator import MaskGenerator
from data_engine.masks.settings import MaskSettings

GRID = ((0.5, 0.5),)

BAD: list[tuple[dict[str, Any], str]] = [
    ({"points_per_batch": 0}, "points_per_batch is 0"),
    ({"crop_n_layers": -1}, "crop_n_layers is -1"),
    ({"crop_n_layers": 9, "points_per_side": 1024}, "crop_n_layers is 9"),
    ({"crop_n_points_downscale_factor": 0}, "crop_n_points_downscale_factor is 0"),
    ({"min_mask_region_area": -1}, "min_mask_region_area is -1"),
    ({"stability_score_offset": -0.1}, "stability_score_offset is -0.1"),
    ({"crop_overlap_ratio": 1.0}, "crop_overlap_ratio is 1.0"),
    ({"crop_overlap_ratio": -0.1}, "crop_overlap_ratio is -0.1"),
    ({"max_mask_area_fraction": 0.0}, "max_mask_area_fraction is 0.0"),
    ({"max_mask_area_fraction": 95}, "max_mask_area_fraction is 95"),
    ({"box_nms_thresh": 1.1}, "box_nms_thresh is 1.1"),
    ({"crop_nms_thresh": -0.5}, "crop_nms_thresh is -0.5"),
    ({"points_per_side": 0}, "points_per_side is 0"),
    ({"points_per_side": -3}, "points_per_side is -3"),
    ({"points_per_side": 3, "crop_n_layers": 2, "crop_n_points_downscale_factor": 2}, "points_per_side is 3"),
    ({"points_per_side": None}, "points_per_side or point_grids"),
    ({"points_per_side": 8, "point_grids": (GRID,)}, "points_per_side or point_grids"),
    ({"points_per_side": None, "point_grids": (GRID,), "crop_n_layers": 1}, "point_grids is .* give 2 grids"),
    ({"points_per_side": None, "point_grids": ((),)}, "point_grids: grid 0 is not one or more points"),
    ({"points_per_side": None, "point_grids": (((0.5, 0.5, 0.5),),)}, r"point_grids: grid 0 is not .* \(x, y\)"),
    ({"points_per_side": None, "point_grids": (((320.0, 200.0),),)}, r"point_grids: grid 0 .* \[0, 1\]"),
    ({"points_per_side": None, "point_grids": (((0.5, float("nan")),),)}, r"point_grids: grid 0 .* \[0, 1\]"),
    ({"points_per_side": None, "point_grids": (((float("nan"), 0.5),),)}, r"point_grids: grid 0 .* \[0, 1\]"),
    ({"points_per_side": None, "point_grids": (GRID, ((0.5, -0.1),))}, r"point_grids: grid 1 .* \[0, 1\]"),
    ({"drop_small_masks": True}, "min_mask_region_area"),
    ({"suppression": "masks"}, "suppression is 'masks': use 'box' or 'mask'"),
    ({"adaptive_step": 3}, "adaptive_step is 3: use 2, 4 or 8"),
    ({"adaptive_step": 1}, "adaptive_step is 1"),
    ({"adaptive_points": True, "points_per_side": None, "point_grids": (GRID,)}, "adaptive_points needs points_per"),
    *(
        ({name: float("nan")}, f"{name} is nan")
        for name in (
            "pred_iou_thresh",
            "stability_score_thresh",
            "stability_score_offset",
            "box_nms_thresh",
            "crop_nms_thresh",
            "crop_overlap_ratio",
            "max_mask_area_fraction",
        )
    ),
]


@pytest.mark.parametrize(("settings", "message"), BAD, ids=lambda value: str(value)[:60])
def test_bad_values_are_refused_by_name(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MaskSettings(**settings)


def test_names_and_defaults_are_the_references() -> None:
    theirs = inspect.signature(SamAutomaticMaskGenerator).parameters
    ours = inspect.signature(MaskSettings).parameters
    shared = [name for name in theirs if name not in ("model", "output_mode")]
    differing = {name for name in shared if ours[name].default != theirs[name].default}
    assert differing == {"points_per_batch"}  # speed alone, and here the device's affair
    beyond = {name: ours[name].default for name in set(ours) - set(shared)}
    off = {"max_mask_area_fraction": 1.0, "drop_small_masks": False, "suppression": "box", "adaptive_points": False}
    assert beyond == {**off, "adaptive_step": 2}
    output_mode = inspect.signature(MaskGenerator).parameters["output_mode"]
    assert output_mode.default == theirs["output_mode"].default


def test_overrides_and_settings() -> None:
    base = MaskSettings(points_per_side=8, box_nms_thresh=0.5)
    generator = MaskGenerator(PlantedSegmenter(), base, crop_n_layers=1)
    assert generator.settings == MaskSettings(points_per_side=8, box_nms_thresh=0.5, crop_n_layers=1)
    assert MaskGenerator(PlantedSegmenter()).settings == MaskSettings()


def test_point_grids_as_in_the_reference() -> None:
    """A list of arrays, with points_per_side None or left out; None means no grids."""
    grids = [np.array([[0.5, 0.5], [0.1, 0.9]])]
    for overrides in ({"point_grids": grids}, {"point_grids": grids, "points_per_side": None}):
        assert MaskGenerator(PlantedSegmenter(), **overrides).settings.points_per_side is None
    assert MaskGenerator(PlantedSegmenter(), point_grids=None).settings == MaskSettings()
    with pytest.raises(ValueError, match="points_per_side or point_grids"):
        MaskGenerator(PlantedSegmenter(), point_grids=grids, points_per_side=8)


def test_unknown_output_mode() -> None:
    with pytest.raises(UsageError, match=r"'png'.*binary_mask, uncompressed_rle or coco_rle"):
        MaskGenerator(PlantedSegmenter(), output_mode="png")  # type: ignore[arg-type]


def test_opt_in_settings_of_a_job() -> None:
    masks = load_config(None, ["masks.suppression=mask", "masks.adaptive_points=true", "masks.adaptive_step=4"]).masks
    assert (masks.suppression, masks.adaptive_points, masks.adaptive_step) == ("mask", True, 4)
    assert (load_config().masks.suppression, load_config().masks.adaptive_points) == ("box", False)
    assert load_config(None, ["masks.suppression=mask"]).content() != load_config().content()
    with pytest.raises(ConfigError, match=r"masks\.suppression.*'box' or 'mask'"):
        load_config(None, ["masks.suppression=boxes"])
