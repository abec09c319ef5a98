"""Our records against segment-anything's, from photographs to runs, with whole networks in float32 on the CPU.

Networks: small ones with random weights, the starter model that ships with the package, and (slow) a ViT-B with
random weights. Random weights give degenerate masks, so `random_reference` rescales the decoder's heads, and the
thresholds here let a fair share of the masks live: tests assert how many.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from parity.networks import random_reference, segmenter_of
from parity.reference import Records, SamAutomaticMaskGenerator, assert_same_records, modeling, reference_sam
from PIL import Image

from data_engine.masks.generator import MaskGenerator
from data_engine.sam.model import SamArchitecture
from data_engine.sam.segmenter import SamSegmenter, load_segmenter

PHOTOS = sorted((Path(__file__).parents[2] / "examples" / "photos").glob("*.jpg"))
GRIDS = [np.random.default_rng(3).random((count, 2)) for count in (40, 9)]
SCORE = 1e-5  # float32 sums in another order

LENIENT = {"pred_iou_thresh": 0.8, "stability_score_thresh": 0.7, "box_nms_thresh": 0.9}
CASES: list[dict[str, Any]] = [
    {"points_per_side": 10, "crop_n_layers": 1},
    {"points_per_side": 8, "crop_n_layers": 2, "crop_n_points_downscale_factor": 2, "min_mask_region_area": 60},
    {"points_per_side": 6, "crop_n_layers": 1, "crop_overlap_ratio": 0.5, "crop_nms_thresh": 0.5},
    {"points_per_side": None, "point_grids": GRIDS, "crop_n_layers": 1},
]


def photograph(name: str, long_side: int) -> np.ndarray:
    (path,) = [photo for photo in PHOTOS if photo.stem == name]
    image = Image.open(path).convert("RGB")
    image.thumbnail((long_side, long_side))
    return np.asarray(image)


@cache
def random_networks(seed: int) -> tuple[modeling.Sam, SamSegmenter]:
    reference = random_reference(seed=seed)
    return reference, segmenter_of(reference)


@cache
def starter() -> tuple[modeling.Sam, SamSegmenter]:
    segmenter = load_segmenter("starter", device="cpu")
    reference = reference_sam(segmenter.model.architecture)
    reference.load_state_dict(segmenter.model.state_dict())
    return reference, segmenter


def both(networks: tuple[modeling.Sam, SamSegmenter], image: np.ndarray, **settings: Any) -> tuple[Records, Records]:
    reference, segmenter = networks
    mine = MaskGenerator(segmenter, output_mode="coco_rle", **settings).generate(image)
    yours = SamAutomaticMaskGenerator(reference, output_mode="coco_rle", **settings).generate(image)
    return mine, yours


@pytest.mark.parametrize(("seed", "name", "long_side"), [(0, "truck", 300), (1, "motorcycle", 260), (0, "chelsea", 48)])
def test_random_network(seed: int, name: str, long_side: int) -> None:
    image = photograph(name, long_side)
    total = 0
    for settings in CASES:
        masks, _ = assert_same_records(
            *both(random_networks(seed), image, **LENIENT, **settings), score_tolerance=SCORE
        )
        total += masks
    assert total > 60


def test_random_network_with_defaults() -> None:
    masks, _ = assert_same_records(*both(random_networks(0), photograph("coffee", 320)), score_tolerance=SCORE)
    assert masks > 5


def test_random_network_finds_nothing() -> None:
    assert both(random_networks(0), photograph("coffee", 200), pred_iou_thresh=5.0, points_per_side=4) == ([], [])


def median_score(segmenter: SamSegmenter, image: np.ndarray) -> float:
    """A threshold that half of the masks pass, whatever the weights' confidence; rounded, so that none lies on it."""
    everything = {"pred_iou_thresh": 0.0, "stability_score_thresh": 0.0, "box_nms_thresh": 1.0}
    (masks,) = MaskGenerator(segmenter, points_per_side=6, **everything).generate_batch([image])
    return round(float(np.median(masks.predicted_iou)), 3) + 0.0005


@pytest.mark.parametrize(("name", "long_side"), [("truck", 300), ("motorcycle", 240), ("chelsea", 48)])
def test_starter_model(name: str, long_side: int) -> None:
    image = photograph(name, long_side)
    # The starter's logits are small, so that hardly a mask is stable at the default offset.
    stability = {"stability_score_thresh": 0.2, "stability_score_offset": 0.25}
    lenient = {"pred_iou_thresh": median_score(starter()[1], image), **stability}
    # And so flat that the rounding of float32 sums decides a pixel at one of the three thresholds in one of a hundred
    # masks; which ones depends on the processor.
    mine, yours = [], []
    for settings in CASES:
        for records, each in zip((mine, yours), both(starter(), image, **lenient, **settings), strict=True):
            records += each
    masks, equal = assert_same_records(mine, yours, score_tolerance=SCORE, undecided_share=0.05)
    assert masks > 20
    assert equal > 0.95 * masks


def test_starter_model_with_defaults() -> None:
    assert_same_records(*both(starter(), photograph("groceries", 320)), score_tolerance=SCORE)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_random_vit_b() -> None:
    reference = random_reference(SamArchitecture.vit("b"))
    settings = {"points_per_side": 8, "crop_n_layers": 1, "crop_n_points_downscale_factor": 2}
    masks, _ = assert_same_records(
        *both(
            (reference, segmenter_of(reference)),
            photograph("dog", 500),
            min_mask_region_area=50,
            **LENIENT,
            **settings,
        ),
        score_tolerance=1e-4,
    )
    assert masks > 10
