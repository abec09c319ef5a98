"""Whether two generators found the same masks.

`in_order` is for the same arithmetic (float32 on a CPU): record by record. `matched` is for arithmetic that differs
(a GPU, reduced precision), where masks near a threshold come and go: masks are paired by their overlap, and every mask
without a partner is asked why. It is explained if it lies near a threshold, or is linked by suppression to one that is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import numpy as np
from rlemasklib import RLEMask

from data_engine.bench.contender import Records
from data_engine.masks import rle
from data_engine.masks.settings import MaskSettings

RECALL_AT = (0.9, 0.95, 0.99)
_PAIR = 0.9  # masks that overlap more than this are the same mask
_EDGE = 20  # pixels from a crop's edge where boxes are dropped


@dataclass(slots=True)
class InOrder:
    """Counts over images."""

    masks: int = 0
    reference_masks: int = 0
    equal_runs: int = 0
    different_pixels: int = 0  # of all masks at the same place of both lists
    most_different_pixels: int = 0  # of a single mask
    displaced: int = 0  # masks at the same place that are of another click or crop
    score_difference: float = 0.0  # the largest of predicted IoU

    @property
    def perfect(self) -> bool:
        return self.masks == self.reference_masks == self.equal_runs and not self.displaced

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "perfect": self.perfect}


@dataclass(slots=True)
class Matched:
    """Counts over images."""

    masks: int = 0
    reference_masks: int = 0
    found: dict[float, int] = field(default_factory=lambda: dict.fromkeys(RECALL_AT, 0))  # pairs of at least that IoU
    lost: int = 0  # of the reference's, without a partner
    extra: int = 0  # of ours, without a partner
    at_a_threshold: int = 0  # of lost and extra
    linked: int = 0
    unexplained: int = 0

    def as_dict(self) -> dict[str, Any]:
        counts = {name.name: getattr(self, name.name) for name in fields(self) if name.name != "found"}
        return {
            **counts,
            "recall_of_reference": {str(at): n / max(1, self.reference_masks) for at, n in self.found.items()},
            "recall_of_ours": {str(at): n / max(1, self.masks) for at, n in self.found.items()},
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Margins:
    """How near to a threshold decides nothing."""

    predicted_iou: float
    stability: float
    overlap: float = 0.02  # of boxes, in suppression
    pixels: int = 2  # of a box and the band along a crop's edge

    @classmethod
    def of(cls, precision: str) -> Margins:
        near = 0.02 if precision == "fast" else 0.002
        return cls(predicted_iou=near, stability=near)


def in_order(ours: Records, theirs: Records, into: InOrder) -> None:
    """Adds what one image shows. Records with run lengths, as both generators ordered them."""
    into.masks += len(ours)
    into.reference_masks += len(theirs)
    for mine, yours in zip(ours, theirs, strict=False):
        into.displaced += (mine["point_coords"], mine["crop_box"]) != (yours["point_coords"], yours["crop_box"])
        into.score_difference = max(into.score_difference, abs(mine["predicted_iou"] - yours["predicted_iou"]))
        if mine["segmentation"]["counts"] == yours["segmentation"]["counts"]:
            into.equal_runs += 1
            continue
        different = int((_runs(mine) ^ _runs(yours)).area())
        into.different_pixels += different
        into.most_different_pixels = max(into.most_different_pixels, different)


def matched(ours: Records, theirs: Records, settings: MaskSettings, margins: Margins, into: Matched) -> None:
    """Adds what one image shows. Without scores (transformers gives no stability) fewer masks are explained."""
    into.masks += len(ours)
    into.reference_masks += len(theirs)
    masks, others = [_runs(record) for record in ours], [_runs(record) for record in theirs]
    overlap = RLEMask.iou_matrix(masks, others) if masks and others else np.zeros((len(masks), len(others)))
    pairs = _pairs(overlap)
    for at in into.found:
        into.found[at] += sum(overlap[pair] >= at for pair in pairs)
    paired = [pair for pair in pairs if overlap[pair] >= _PAIR]
    extra = sorted(set(range(len(ours))) - {mine for mine, _ in paired})
    lost = sorted(set(range(len(theirs))) - {yours for _, yours in paired})
    into.extra += len(extra)
    into.lost += len(lost)
    alone = [ours[i] for i in extra] + [theirs[i] for i in lost]
    boxes = np.array([_box(runs) for runs in masks + others], float).reshape(-1, 4)
    own = boxes[[*extra, *(len(ours) + i for i in lost)]]
    near = np.array([_near_threshold(record, settings, margins) for record in alone], bool)
    near |= _near_suppression(own, boxes, settings, margins)
    linked = _linked(near, own, alone, settings, margins)
    into.at_a_threshold += int(near.sum())
    into.linked += int((linked & ~near).sum())
    into.unexplained += int((~linked).sum())


def _pairs(overlap: np.ndarray) -> list[tuple[int, int]]:
    """One to one, the best first; pairs that do not overlap are none."""
    mine, yours = np.nonzero(overlap)
    taken: tuple[set[int], set[int]] = (set(), set())
    pairs = []
    for i in np.argsort(-overlap[mine, yours], kind="stable"):
        pair = int(mine[i]), int(yours[i])
        if pair[0] not in taken[0] and pair[1] not in taken[1]:
            taken[0].add(pair[0])
            taken[1].add(pair[1])
            pairs.append(pair)
    return pairs


def _near_threshold(record: dict[str, Any], settings: MaskSettings, margins: Margins) -> bool:
    """Predicted IoU, stability, or the band along an inner edge of its crop."""
    for name, threshold, margin in (
        ("predicted_iou", settings.pred_iou_thresh, margins.predicted_iou),
        ("stability_score", settings.stability_score_thresh, margins.stability),
    ):
        if name in record and abs(record[name] - threshold) <= margin:
            return True
    if "crop_box" not in record or settings.crop_n_layers == 0:
        return False
    x, y, w, h = record["bbox"]
    left, top, width, height = record["crop_box"]
    gaps = np.abs(np.subtract([x, y, x + w, y + h], [left, top, left + width, top + height]))
    return bool((np.abs(gaps - _EDGE) <= margins.pixels).any())


def _near_suppression(own: np.ndarray, boxes: np.ndarray, settings: MaskSettings, margins: Margins) -> np.ndarray:
    """Whether a box overlaps with any so much that a little more or less decides."""
    overlap = box_overlap(own, boxes)
    thresholds = {settings.box_nms_thresh, settings.crop_nms_thresh}
    return np.any([(np.abs(overlap - each) <= margins.overlap).any(1) for each in thresholds], 0)


def _linked(
    near: np.ndarray, own: np.ndarray, alone: Sequence[dict[str, Any]], settings: MaskSettings, margins: Margins
) -> np.ndarray:
    """Near a threshold, or reached from one that is by suppression: each of two boxes that overlap excludes the other.

    Two that overlap and score alike explain each other: which of them is first is a matter of rounding.
    """
    suppresses = box_overlap(own, own) > min(settings.box_nms_thresh, settings.crop_nms_thresh) - margins.overlap
    np.fill_diagonal(suppresses, False)
    scores = np.array([record.get("predicted_iou", np.nan) for record in alone], float)
    alike = np.abs(scores[:, None] - scores[None, :]) <= margins.predicted_iou
    linked = near | (suppresses & alike).any(1)
    while True:
        grown = linked | (suppresses & linked).any(1)
        if (grown == linked).all():
            return linked
        linked = grown


def box_overlap(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Nx4 and Mx4 (x0, y0, x1, y1) -> NxM IoU."""
    low = np.maximum(boxes[:, None, :2], others[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    shared = (high - low).clip(min=0).prod(2)
    areas, other_areas = ((each[:, 2:] - each[:, :2]).prod(1) for each in (boxes, others))
    return shared / np.maximum(areas[:, None] + other_areas[None, :] - shared, 1)


def _runs(record: dict[str, Any]) -> RLEMask:
    segmentation = record["segmentation"]
    return rle.from_counts_string(segmentation["counts"], *segmentation["size"])


def _box(runs: RLEMask) -> tuple[int, int, int, int]:
    return rle.box(runs)
