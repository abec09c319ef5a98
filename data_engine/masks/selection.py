"""Which candidates of an image become its masks: suppression within and between windows, and small regions.

Needs no model: a run of the generator ends with it, and so does a replay of stored candidates at other thresholds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from rlemasklib import RLEMask

from data_engine.masks import regions, rle
from data_engine.masks.candidates import Candidates, put_into_runs
from data_engine.masks.grid import CropWindow
from data_engine.masks.image_masks import ImageMasks, MaskCounts
from data_engine.masks.settings import MaskSettings
from data_engine.masks.stages import Stages
from data_engine.masks.suppress import box_nms, mask_nms


@dataclass(frozen=True, slots=True)
class Selection:
    """For one image of height x width."""

    settings: MaskSettings
    mask_threshold: float
    height: int
    width: int
    windows: Sequence[CropWindow]  # that were looked at
    stages: Stages

    def of_window(self, found: Candidates) -> Candidates:
        """What stays of the candidates of one window that passed the filters, best first."""
        return self._suppress(found, found.predicted_iou, self.settings.box_nms_thresh)

    def of_image(self, by_window: Sequence[Candidates]) -> tuple[Candidates, np.ndarray]:
        """What stays of all windows, best first, in runs; with it, the numbers of those dropped as too small."""
        found = Candidates.concatenate(by_window)
        if len(self.windows) > 1:
            # Masks of smaller crops win: the object was seen larger there.
            areas = np.array([window.area for window in self.windows], np.float32)
            found = self._suppress(found, 1 / areas[found.window], self.settings.crop_nms_thresh)
        self.put_into_runs(found)
        if self.settings.min_mask_region_area == 0:
            return found, np.zeros(0, np.int64)
        with self.stages.measure("regions"):
            found, changed, small = self._clean_regions(found)
        threshold = max(self.settings.box_nms_thresh, self.settings.crop_nms_thresh)
        return self._suppress(found, (~changed).astype(np.float32), threshold), small

    def columns(self, found: Candidates, counts: MaskCounts) -> ImageMasks:
        """Masks in runs, as they are given out."""
        with self.stages.measure("RLE"):
            windows = self.window_table()[found.window]
            return ImageMasks(
                height=self.height,
                width=self.width,
                counts=[rle.counts_string(runs) for runs in found.masks],
                boxes=found.boxes,
                area=found.area,
                predicted_iou=found.predicted_iou,
                stability_score=found.stability,
                points=found.points,
                crop_boxes=windows[:, :4],
                crop_layer=windows[:, 4],
                filtered=counts,
            )

    def window_table(self) -> np.ndarray:
        """Wx5 int64: x0, y0, x1, y1, layer."""
        return np.array([[w.x0, w.y0, w.x1, w.y1, w.layer] for w in self.windows], np.int64)

    def put_into_runs(self, found: Candidates) -> None:
        with self.stages.measure("RLE"):
            found.masks[:] = put_into_runs(found.masks, self.mask_threshold, self.height, self.width)

    def _suppress(self, found: Candidates, scores: np.ndarray, iou_threshold: float) -> Candidates:
        """What stays, best first."""
        if self.settings.suppression == "box":
            with self.stages.measure("suppress"):
                return found.select(box_nms(found.boxes, scores, iou_threshold))
        self.put_into_runs(found)  # all: a mask that nothing can rival stays, and needs its runs anyway
        with self.stages.measure("suppress"):
            return found.select(mask_nms(found.masks, found.boxes, found.area, scores, iou_threshold))

    def _clean_regions(self, found: Candidates) -> tuple[Candidates, np.ndarray, np.ndarray]:
        """Fills small holes and removes small islands; with it, which masks changed (N bool), and the numbers of those
        that were dropped."""
        min_area = self.settings.min_mask_region_area
        changed = np.zeros(len(found), bool)
        too_small = np.zeros(len(found), bool)
        for i, runs in enumerate(found.masks):
            assert isinstance(runs, RLEMask)
            filled = regions.fill_holes(runs, min_area)
            cleaned = regions.remove_islands(filled, min_area)
            pieces = regions.component_areas(filled)
            # As in the reference, a mask that is one small island counts as changed although it stays as it is.
            changed[i] = filled.area() != runs.area() or (pieces < min_area).any()
            too_small[i] = self.settings.drop_small_masks and pieces.max(initial=0) < min_area
            if changed[i]:
                found.masks[i], found.area[i], found.boxes[i] = cleaned, cleaned.area(), rle.box(cleaned)
        return found.select(~too_small), changed[~too_small], found.number[too_small]
