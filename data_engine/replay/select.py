"""From the stored candidates of an image to the masks that a run with other thresholds would have made."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from data_engine.masks.candidates import Candidates
from data_engine.masks.image_masks import ImageMasks, MaskCounts
from data_engine.masks.rejects import Verdict, judge
from data_engine.masks.selection import Selection
from data_engine.masks.settings import MaskSettings
from data_engine.masks.stages import Stages
from data_engine.replay.stored import StoredImage


@dataclass(frozen=True, slots=True)
class Replayed:
    """The masks, and which candidate each of them is."""

    masks: ImageMasks
    numbers: np.ndarray  # K int64, indices into the stored candidates


def replay(image: StoredImage, settings: MaskSettings) -> Replayed:
    """The masks at these settings, to the bit and in the order of a run. The image must not be a failed one."""
    height, width = image.row["height"], image.row["width"]
    verdict = judge(settings, image.predicted_iou, image.stability, image.area, image.on_edge, height * width)
    no_logits = 0.0  # every mask is in runs already, so no threshold is ever asked for
    selection = Selection(settings, no_logits, height, width, image.windows, Stages(torch.device("cpu")))
    passed = verdict == Verdict.PASSED
    by_window: list[Candidates] = [
        selection.of_window(image.select(np.flatnonzero(passed & (image.window == index)), verdict))
        for index in range(len(image.windows))
    ]
    found, small = selection.of_image(by_window)
    counts = _counts(image.row["n_candidates"], verdict, len(small), len(found))
    return Replayed(selection.columns(found, counts), found.number)


def _counts(candidates: int, verdict: np.ndarray, small: int, masks: int) -> MaskCounts:
    """candidates: all of the image, those below the floor of the predicted IoU included."""
    by_reason = np.bincount(verdict, minlength=len(Verdict)).tolist()
    counts = MaskCounts(
        candidates=candidates,
        rejected_iou=candidates - len(verdict) + by_reason[Verdict.IOU],
        rejected_stability=by_reason[Verdict.STABILITY],
        rejected_edge=by_reason[Verdict.EDGE],
        rejected_area=by_reason[Verdict.AREA] + small,
    )
    counts.rejected_nms = candidates - masks - counts.rejected
    return counts
