"""Keeping rejects changes no mask, and keeps enough to choose again."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from parity.planted import PlantedSegmenter, picture
from torch import Tensor

from data_engine.errors import UsageError
from data_engine.masks import rle
from data_engine.masks.floors import Floors
from data_engine.masks.generator import MaskGenerator
from data_engine.masks.image_masks import ImageMasks, Rejects
from data_engine.masks.prompting import NonFiniteOutput, logits_apart
from data_engine.masks.rejects import Verdict
from data_engine.masks.settings import MaskSettings
from data_engine.sam.segmenter import Decoded, Embeddings

SETTINGS: dict[str, Any] = {
    "points_per_side": 6,
    "pred_iou_thresh": 0.85,
    "stability_score_thresh": 0.7,
    "crop_n_layers": 1,
    "min_mask_region_area": 60,
    "max_mask_area_fraction": 0.3,
    "drop_small_masks": True,
}
IMAGE = picture(180, 250)
LOW, ALL = Floors(0.75, 0.5), Floors(0.0, 0.0)


def run(floors: Floors | None, segmenter: PlantedSegmenter | None = None, **overrides: Any) -> ImageMasks:
    memory = overrides.pop("memory_budget", 1 << 29)
    segmenter = segmenter or PlantedSegmenter(roughness=5.0)
    generator = MaskGenerator(segmenter, memory_budget=memory, **{**SETTINGS, **overrides})
    return generator.run(generator.prepare(IMAGE), floors=floors)


def kept(masks: ImageMasks) -> Rejects:
    assert masks.rejects is not None
    return masks.rejects


def assert_same_masks(a: ImageMasks, b: ImageMasks) -> None:
    assert len(a) > 5
    assert (a.counts, a.filtered) == (b.counts, b.filtered)
    for name in ("boxes", "area", "predicted_iou", "stability_score", "points", "crop_boxes", "crop_layer"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"suppression": "mask"},
        {"min_mask_region_area": 0, "drop_small_masks": False},
        {"crop_n_layers": 0, "pred_iou_thresh": 0.0},
        {"points_per_batch": 7, "memory_budget": 5000},
    ],
    ids=str,
)
def test_masks_are_the_same_with_and_without_rejects(settings: dict[str, Any]) -> None:
    without = run(None, **settings)
    assert without.rejects is None
    for floors in (LOW, ALL):
        assert_same_masks(run(floors, **settings), without)


def test_every_candidate_above_the_floor_is_there_and_says_why_it_went() -> None:
    masks = run(LOW)
    rejects, counts = kept(masks), masks.filtered
    found = Counter(Verdict(verdict) for verdict in rejects.verdict.tolist())
    assert all(found[reason] > 3 for reason in Verdict), found
    assert found[Verdict.PASSED] == len(masks)
    for reason in (Verdict.STABILITY, Verdict.EDGE, Verdict.AREA, Verdict.NMS):
        assert found[reason] == getattr(counts, f"rejected_{reason.name.lower()}")
    assert found[Verdict.IOU] < counts.rejected_iou
    assert rejects.predicted_iou.min() > np.float32(0.75)
    assert len(kept(run(ALL))) == counts.candidates


def test_a_mask_is_found_among_the_candidates() -> None:
    masks = run(LOW)
    rejects = kept(masks)
    places = np.flatnonzero(rejects.mask_id >= 0)
    assert sorted(rejects.mask_id[places].tolist()) == list(range(len(masks)))
    np.testing.assert_array_equal(rejects.verdict == Verdict.PASSED, rejects.mask_id >= 0)
    changed = 0
    for place, mask_id in zip(places.tolist(), rejects.mask_id[places].tolist(), strict=True):
        assert rejects.predicted_iou[place] == masks.predicted_iou[mask_id]
        np.testing.assert_array_equal(rejects.points[place], masks.points[mask_id])
        np.testing.assert_array_equal(rejects.crop_boxes[place], masks.crop_boxes[mask_id])
        if rejects.counts[place] is None:
            assert rejects.area[place] == masks.area[mask_id]
        else:
            changed += rejects.counts[place] != masks.counts[mask_id]
    assert 0 < changed < len(masks)


def test_runs_are_those_before_regions_were_cleaned_and_none_lie_below_the_floor() -> None:
    rejects = kept(run(LOW))
    rejected = rejects.verdict != Verdict.PASSED
    below = rejected & ~(rejects.stability_score >= np.float32(0.5))
    assert 0 < below.sum() < rejected.sum()
    np.testing.assert_array_equal(np.array([counts is None for counts in rejects.counts])[rejected], below[rejected])
    for counts, area, box in zip(rejects.counts, rejects.area.tolist(), rejects.boxes.tolist(), strict=True):
        if counts is not None and area:
            runs = rle.from_counts_string(counts, 180, 250)
            assert (runs.area(), list(rle.box(runs))) == (area, box)


def test_chunks_and_memory_change_no_reject() -> None:
    one, other = kept(run(LOW)), kept(run(LOW, points_per_batch=5, memory_budget=5000))
    assert one.counts == other.counts
    np.testing.assert_array_equal(one.verdict, other.verdict)


@given(st.floats(-1, 1), st.floats(-1, 1), st.none() | st.floats(-1, 1))
def test_a_floor_is_never_above_its_threshold(iou: float, stability: float, floor: float | None) -> None:
    settings = MaskSettings(pred_iou_thresh=iou, stability_score_thresh=stability)
    floors = Floors.of(settings, floor, floor, margin=0.1)
    assert floors.predicted_iou <= iou
    assert floors.stability <= stability
    assert floor is None or floors.predicted_iou == min(floor, iou)


def test_a_default_floor_is_a_number_that_can_be_typed() -> None:
    assert Floors.of(MaskSettings(), None, None, margin=0.1) == Floors(0.78, 0.85)


def test_adaptive_points_keep_no_rejects() -> None:
    with pytest.raises(UsageError, match="adaptive_points"):
        run(LOW, adaptive_points=True)


@given(st.lists(st.tuples(*3 * [st.sampled_from(["no", "first", "wanted"])]), min_size=1, max_size=9))
def test_masks_that_stay_are_computed_without_the_rejected(kinds: list[tuple[str, ...]]) -> None:
    """On a GPU their last bits could depend on the company; here all of the logits do."""
    company: list[int] = []

    def logits(wanted: Tensor) -> Tensor:
        company.append(int(wanted.sum()))
        return torch.arange(wanted.numel())[wanted.flatten()][:, None, None] + 0.1 * len(company)

    first = torch.tensor([[kind == "first" for kind in row] for row in kinds])
    wanted = torch.tensor([[kind != "no" for kind in row] for row in kinds])
    found = logits_apart(Decoded(torch.zeros(first.shape), logits), wanted, first).flatten()
    assert company == [int(first.sum()), int((wanted & ~first).sum())]
    numbers = torch.arange(wanted.numel())[wanted.flatten()]
    expected = numbers + torch.where(first[wanted], 0.1, 0.2)
    torch.testing.assert_close(found, expected)


class Spoilt(PlantedSegmenter):
    """NaN in the logits of every mask whose predicted IoU lies in a range."""

    def __init__(self, least: float, most: float) -> None:
        super().__init__(roughness=5.0)
        self.range = least, most

    def decode(self, embeddings: Embeddings, view: int, *, points: Tensor, labels: Tensor, **_: object) -> Decoded:
        answer = super().decode(embeddings, view, points=points, labels=labels)
        bad = (answer.iou > self.range[0]) & (answer.iou <= self.range[1])

        def logits(wanted: Tensor) -> Tensor:
            found = answer.logits(wanted).clone()
            found[bad[wanted]] = torch.nan
            return found

        return Decoded(answer.iou, logits)


def test_what_is_no_number_fails_an_image_only_where_it_would_without_rejects() -> None:
    assert_same_masks(run(LOW, Spoilt(0.0, 0.85)), run(None))
    for floors in (None, LOW):
        with pytest.raises(NonFiniteOutput):
            run(floors, Spoilt(0.85, 2.0))
