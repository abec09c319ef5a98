"""segment-anything itself, and how its records are compared with ours."""

from __future__ import annotations

from typing import Any

import numpy as np
from parity import torchvision_standin
from pycocotools import mask as coco

with torchvision_standin.installed():
    from segment_anything import SamAutomaticMaskGenerator, SamPredictor, modeling, sam_model_registry
    from segment_anything.utils import amg
    from segment_anything.utils.transforms import ResizeLongestSide

__all__ = [
    "ResizeLongestSide",
    "SamAutomaticMaskGenerator",
    "SamPredictor",
    "amg",
    "assert_same_records",
    "modeling",
    "sam_model_registry",
]

Records = list[dict[str, Any]]


def assert_same_records(ours: Records, theirs: Records, *, score_tolerance: float = 0.0) -> tuple[int, int]:
    """Same masks in the same order: boxes, points and crops equal, scores within the tolerance, runs equal or, where
    a logit lies on the threshold to the last bit, within 3 pixels. Returns (masks, masks with equal runs)."""
    assert len(ours) == len(theirs)
    equal = 0
    for mine, yours in zip(ours, theirs, strict=True):
        assert mine.keys() == yours.keys()
        assert mine["point_coords"] == yours["point_coords"]
        assert mine["crop_box"] == yours["crop_box"]
        assert abs(mine["predicted_iou"] - yours["predicted_iou"]) <= score_tolerance
        np.testing.assert_allclose(mine["stability_score"], yours["stability_score"], rtol=0, atol=score_tolerance)
        if mine["segmentation"] == yours["segmentation"]:
            equal += 1
            assert mine["bbox"] == yours["bbox"]
            assert mine["area"] == yours["area"]
        else:
            pixels = coco.decode(mine["segmentation"]) != coco.decode(yours["segmentation"])
            assert 0 < pixels.sum() <= 3
            assert np.abs(np.subtract(mine["bbox"], yours["bbox"])).max() <= 3
    assert len(ours) - equal <= len(ours) / 1000
    return len(ours), equal
