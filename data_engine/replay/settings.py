"""Which settings can be replayed, and down to where."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from data_engine.config import JobConfig, differences, override_settings
from data_engine.errors import DatasetError, UsageError
from data_engine.masks.settings import MaskSettings
from data_engine.pipeline.plan import JobPlan

# What comes after the model. Everything else decides what the model is asked, or how it is measured.
REPLAYABLE = (
    "masks.pred_iou_thresh",
    "masks.stability_score_thresh",
    "masks.box_nms_thresh",
    "masks.crop_nms_thresh",
    "masks.suppression",
    "masks.max_mask_area_fraction",
    "masks.min_mask_region_area",
    "masks.drop_small_masks",
)
_MOST_STEPS = 1000


def settings_of_run(plan: JobPlan, root: str) -> JobConfig:
    """Those of the run that kept the candidates. Raises DatasetError where it kept none."""
    config = override_settings(plan.config, (), f"the plan of {root}")
    if not config.output.keep_rejects:
        raise DatasetError(
            f"{root} keeps no rejects, so there is nothing to replay: generate it with "
            "--set output.keep_rejects=0.01 (of one image in a hundred) or 1 (of all)"
        )
    return config


def changed(config: JobConfig, overrides: Iterable[str]) -> MaskSettings:
    """The settings with overrides such as "masks.pred_iou_thresh=0.8".

    Raises UsageError for a setting that only the model could follow, and for a threshold below what was kept.
    """
    new = override_settings(config.model_dump(mode="json"), overrides, "the dataset's plan")
    for difference in differences(config.model_dump(mode="json"), new.model_dump(mode="json")):
        name = difference.split(":")[0]
        if name not in REPLAYABLE:
            raise UsageError(
                f"{name} cannot be replayed: only the model can tell, so it takes a new run. "
                f"These can be replayed: {', '.join(REPLAYABLE)}"
            )
    floors = config.reject_floors
    for setting, floor, kept_by in (
        ("pred_iou_thresh", floors.predicted_iou, "output.reject_floor_iou"),
        ("stability_score_thresh", floors.stability, "output.reject_floor_stability"),
    ):
        value = getattr(new.masks, setting)
        if floor > 0 and value < floor:
            raise UsageError(
                f"masks.{setting}={value:g} cannot be replayed: the run kept candidates down to {floor:g}. "
                f"Use {floor:g} or more, or a new run with a lower {kept_by}"
            )
    return new.masks


def sweep(text: str) -> tuple[str, list[str]]:
    """ "masks.pred_iou_thresh=0.8:0.9:0.05" or "masks.suppression=box,mask" -> the setting and its values.

    Both ends of a range are included. Raises UsageError.
    """
    key, separator, values = text.partition("=")
    if not separator or not key or not values:
        raise UsageError(f"--sweep {text!r}: write it as section.setting=first:last:step, or as values with commas")
    if ":" not in values:
        return key, values.split(",")
    return key, [f"{value:.15g}" for value in _range(values.split(":"), text)]


def _range(parts: Sequence[str], text: str) -> list[float]:
    try:
        first, last, step = (float(part) for part in parts)
    except ValueError:
        raise UsageError(f"--sweep {text!r}: a range is three numbers, first:last:step") from None
    if not (step > 0 and np.isfinite([first, last]).all() and 0 <= (last - first) / step < _MOST_STEPS):
        raise UsageError(
            f"--sweep {text!r}: the range needs last >= first, a step above 0 and fewer than {_MOST_STEPS} values"
        )
    count = int(np.floor((last - first) / step + 1e-9)) + 1  # 0.8:0.9:0.02 has six values, whatever floats make of it
    return [round(first + i * step, 9) for i in range(count)]
