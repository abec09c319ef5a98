"""Masks that somebody painted: run lengths from a browser, which are looked at before they are believed."""

from __future__ import annotations

from typing import Any

from rlemasklib import RLEMask

from data_engine.errors import UsageError


def painted_mask(counts: Any, begun: str | None, *, height: int, width: int) -> dict[str, Any]:
    """The columns of an edit for a painted mask.

    counts: COCO's compressed run lengths. begun: those of what was painted on, None for an empty image. The model has
    no opinion of the result. Raises UsageError for what is no mask of this size, or an empty one.
    """
    runs = _checked(counts, height, width)
    if not runs.area():
        raise UsageError("nothing is left of the mask: delete it instead")
    before = RLEMask.zeros((height, width)) if begun is None else _checked(begun, height, width)
    x, y, w, h = (int(value) for value in runs.bbox())
    return {
        "painted": int((runs ^ before).area()),
        "bbox_x": x,
        "bbox_y": y,
        "bbox_w": w,
        "bbox_h": h,
        "area": int(runs.area()),
        "predicted_iou": None,
        "stability_score": None,
        "counts": runs.to_dict()["counts"].decode("ascii"),
    }


def _checked(counts: Any, height: int, width: int) -> RLEMask:
    """Run lengths that do not cover the image would make decoders write outside of their buffers."""
    try:
        runs = RLEMask.from_dict({"size": [height, width], "counts": counts.encode("ascii")})
        if runs.is_valid_rle():
            return runs
    except (AttributeError, UnicodeEncodeError, ValueError, TypeError):
        pass
    raise UsageError(f"painted: COCO's compressed run lengths of {width} x {height} pixels")
