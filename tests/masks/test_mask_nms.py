"""Suppression by the IoU of the masks themselves: the function, and the setting `suppression`."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from parity.planted import PlantedSegmenter, picture
from rlemasklib import RLEMask

from data_engine.masks import rle
from data_engine.masks.generator import MaskGenerator
from data_engine.masks.image_masks import ImageMasks
from data_engine.masks.suppress import box_nms, mask_nms


def iou(a: np.ndarray, b: np.ndarray) -> float:
    return (a & b).sum() / max((a | b).sum(), 1)


def naive(masks: list[np.ndarray], scores: np.ndarray, threshold: float) -> list[int]:
    """The definition, on pixels."""
    kept: list[int] = []
    for i in np.argsort(-scores, kind="stable").tolist():
        if all(iou(masks[i], masks[j]) <= threshold for j in kept):
            kept.append(i)
    return kept


def facts(masks: list[np.ndarray]) -> tuple[list[RLEMask], np.ndarray, np.ndarray]:
    runs = [rle.encode(mask) for mask in masks]
    return runs, np.array([rle.box(mask) for mask in runs]).reshape(-1, 4), np.array([mask.area() for mask in runs])


@st.composite
def several_masks(draw: st.DrawFn) -> list[np.ndarray]:
    """Rectangles, some with holes, some nearly alike, some empty."""
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    masks: list[np.ndarray] = []
    for _ in range(draw(st.integers(0, 14))):
        mask = np.zeros((11, 13), bool)
        y, x = random.integers(0, 11, 2)
        mask[y : y + random.integers(0, 9), x : x + random.integers(0, 9)] = True
        if masks and random.random() < 0.5:
            mask = masks[random.integers(len(masks))].copy()
        masks.append(mask ^ (random.random(mask.shape) < random.choice([0, 0.03, 0.3])))
    return masks


THRESHOLDS = st.sampled_from([0.0, 0.25, 0.5, 0.7, 0.75, 0.9, 1.0])  # many IoUs are exactly one of these


@given(several_masks(), THRESHOLDS, st.integers(0, 99))
@settings(max_examples=300, deadline=None)
def test_agrees_with_the_definition_on_pixels(masks: list[np.ndarray], threshold: float, seed: int) -> None:
    scores = np.random.default_rng(seed).choice([0.25, 0.5, 0.75], len(masks)).astype(np.float32)
    runs, boxes, areas = facts(masks)
    assert mask_nms(runs, boxes, areas, scores, threshold).tolist() == naive(masks, scores, threshold)


def test_runs_are_compared_only_where_boxes_and_areas_leave_it_open(monkeypatch: pytest.MonkeyPatch) -> None:
    masks = np.zeros((4, 30, 30), bool)
    masks[0, :9, :9] = masks[1, 20:29, 20:29] = masks[2, :5, :9] = masks[3, :9, 1:10] = True
    compared: list[int] = []
    matrix = RLEMask.iou_matrix
    monkeypatch.setattr(RLEMask, "iou_matrix", lambda a, b: [compared.append(len(a) * len(b)), matrix(a, b)][1])
    runs, boxes, areas = facts(list(masks))
    assert mask_nms(runs, boxes, areas, np.ones(4, np.float32), 0.7).tolist() == [0, 1, 2]
    assert sum(compared) == 1  # the first and the last


def test_no_masks() -> None:
    kept = mask_nms([], np.zeros((0, 4), np.int64), np.zeros(0, np.int64), np.zeros(0, np.float32), 0.7)
    assert kept.shape == (0,)
    assert kept.dtype == np.int64


def test_a_part_that_fills_its_wholes_box_survives() -> None:
    """A cross and its upright bar: boxes of the same extent, a third of the pixels."""
    whole, part = np.zeros((2, 60, 40), bool)
    whole[:, 16:24] = whole[26:34, :] = True
    whole[0, 2:38] = whole[59, 2:38] = True
    part[:, 2:4] = part[:, 36:38] = True
    runs, boxes, areas = facts([whole, part])
    scores = np.array([0.9, 0.8], np.float32)
    assert box_nms(boxes, scores, 0.7).tolist() == [0]
    assert mask_nms(runs, boxes, areas, scores, 0.7).tolist() == [0, 1]


def test_a_speck_does_not_save_a_duplicate() -> None:
    """segment-anything issue 199: one stray pixel makes another box of the same mask."""
    mask = np.zeros((100, 100), bool)
    mask[60:80, 60:80] = True
    speck = mask.copy()
    speck[2, 3] = True
    runs, boxes, areas = facts([mask, speck])
    scores = np.array([0.9, 0.95], np.float32)
    assert box_nms(boxes, scores, 0.7).tolist() == [1, 0]
    assert mask_nms(runs, boxes, areas, scores, 0.7).tolist() == [1]


SETTINGS: dict[str, Any] = {"points_per_side": 10, "stability_score_thresh": 0.6, "crop_n_layers": 1}


def run(segmenter: PlantedSegmenter | None = None, **overrides: Any) -> ImageMasks:
    generator = MaskGenerator(segmenter or PlantedSegmenter(), **{**SETTINGS, **overrides})
    return generator.run(generator.prepare(picture(180, 250)))


def columns(masks: ImageMasks) -> list[Any]:
    return [masks.counts, masks.boxes.tolist(), masks.points.tolist(), masks.crop_boxes.tolist(), masks.filtered]


def test_both_suppressions_of_a_generator_are_by_masks() -> None:
    every = run(suppression="mask", box_nms_thresh=1.0, crop_nms_thresh=1.0)
    pixels = [every.mask(i) for i in range(len(every))]
    windows, first = np.unique(every.crop_boxes, axis=0, return_index=True)
    within: list[int] = []
    for window in windows[np.argsort(first)]:
        members = np.flatnonzero((every.crop_boxes == window).all(1))
        kept = naive([pixels[i] for i in members], every.predicted_iou[members], 0.6)
        within += members[kept].tolist()
    x0, y0, x1, y1 = every.crop_boxes[within].T
    kept = naive([pixels[i] for i in within], 1 / ((x1 - x0) * (y1 - y0)).astype(np.float32), 0.5)
    expected = [every.counts[within[i]] for i in kept]
    found = run(suppression="mask", box_nms_thresh=0.6, crop_nms_thresh=0.5)
    assert 10 < len(expected) < len(within) < len(every)
    assert found.counts == expected
    assert run(box_nms_thresh=0.6, crop_nms_thresh=0.5).counts != expected


def test_the_last_suppression_is_by_masks_too() -> None:
    settings = {"crop_n_layers": 0, "box_nms_thresh": 0.6, "crop_nms_thresh": 0.5, "min_mask_region_area": 200}
    found = run(suppression="mask", **settings)
    pixels = [found.mask(i) for i in range(len(found))]
    assert naive(pixels, np.arange(len(pixels), 0, -1), 0.6) == list(range(len(pixels)))
    boxes = box_nms(found.boxes, np.arange(len(pixels), 0, -1), 0.6)
    assert len(boxes) < len(pixels)  # masks whose boxes overlap more than that stay


@pytest.mark.parametrize("overrides", [{"memory_budget": 0}, {"memory_budget": 50_000}, {"points_per_batch": 7}])
def test_memory_and_chunks_change_nothing(overrides: dict[str, int]) -> None:
    settings = {"suppression": "mask", "min_mask_region_area": 50}
    assert columns(run(**settings, **overrides)) == columns(run(**settings))


def test_every_candidate_is_accounted_for() -> None:
    masks = run(suppression="mask", min_mask_region_area=50)
    counts = masks.filtered.as_dict()
    assert counts.pop("candidates") == 5 * 100 * 3 == sum(counts.values()) + len(masks)
