"""What the filters reject, and why: kept where it is asked for, so that other thresholds need no model."""

from __future__ import annotations

from enum import IntEnum

import numpy as np

from data_engine.masks import rle
from data_engine.masks.candidates import Candidates
from data_engine.masks.floors import Floors
from data_engine.masks.image_masks import Rejects
from data_engine.masks.settings import MaskSettings


class Verdict(IntEnum):
    """The first filter that rejects a candidate, in the order in which they ask."""

    PASSED = 0
    IOU = 1
    STABILITY = 2
    EDGE = 3
    AREA = 4
    NMS = 5


def is_stable(stability: np.ndarray, threshold: float) -> np.ndarray:
    """N float32, NaN for empty masks -> N bool. A threshold of 0 lets everything pass."""
    if threshold <= 0:
        return np.ones(len(stability), bool)
    return stability >= np.float32(threshold)


def judge(
    settings: MaskSettings,
    predicted_iou: np.ndarray,
    stability: np.ndarray,
    area: np.ndarray,
    on_edge: np.ndarray,
    image_area: int,
) -> np.ndarray:
    """N candidates -> N int8, each a `Verdict`: PASSED is as far as filters that look at one mask alone can say.

    predicted_iou and stability N float32, area N pixels, on_edge N bool, image_area in pixels.
    """
    low = (settings.pred_iou_thresh > 0) & ~(predicted_iou > np.float32(settings.pred_iou_thresh))
    unstable = ~is_stable(stability, settings.stability_score_thresh)
    too_large = (settings.max_mask_area_fraction < 1) & (area >= settings.max_mask_area_fraction * image_area)
    reasons = [Verdict.IOU, Verdict.STABILITY, Verdict.EDGE, Verdict.AREA]
    return np.select([low, unstable, on_edge, too_large], reasons, Verdict.PASSED).astype(np.int8)


class RejectLog:
    """Remembers every candidate of one image, so that in the end the rejected ones are known."""

    def __init__(self, floors: Floors) -> None:
        self._floors = floors
        self._windows: list[Candidates] = []
        self._count = 0

    def add(self, found: Candidates) -> None:
        """The candidates of the next window, in runs, before any suppression. Numbers them."""
        found.number[:] = np.arange(self._count, self._count + len(found))
        self._windows.append(found)
        self._count += len(found)

    def finish(self, stay: Candidates, small: np.ndarray, windows: np.ndarray) -> Rejects:
        """stay: the masks of the image, in order; small: numbers of those dropped for the area of their pieces.

        windows: Wx5 int64 x0, y0, x1, y1, layer.
        """
        every = Candidates.concatenate(self._windows)
        verdict = np.where(every.verdict == Verdict.PASSED, np.int8(Verdict.NMS), every.verdict)
        verdict[small] = Verdict.AREA
        verdict[stay.number] = Verdict.PASSED
        mask_id = np.full(len(every), -1)
        mask_id[stay.number] = np.arange(len(stay))
        with_runs = is_stable(every.stability, self._floors.stability)
        for number, final in zip(stay.number.tolist(), stay.masks, strict=True):
            with_runs[number] = every.masks[number] is not final  # small regions changed it
        crops = windows[every.window]
        return Rejects(
            counts=[rle.counts_string(every.masks[i]) if with_runs[i] else None for i in range(len(every))],
            boxes=every.boxes,
            area=every.area,
            predicted_iou=every.predicted_iou,
            stability_score=every.stability,
            points=every.points,
            crop_boxes=crops[:, :4],
            crop_layer=crops[:, 4],
            verdict=verdict,
            mask_id=mask_id,
        )
