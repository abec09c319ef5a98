"""Whether stored run lengths are what the columns beside them say."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
from rlemasklib import RLEMask

from data_engine.dataset.coco_runs import area_and_box


def run_length_problems(masks: pa.Table, most: int) -> Iterator[str]:
    """Every run length decodes, with the standard tool, to the area and the box that are stored beside it.

    masks: rows of masks or rejects that have counts. At most `most` problems of a kind are named.
    """
    height, width = masks["height"].to_numpy(), masks["width"].to_numpy()
    rles = [
        {"size": [h, w], "counts": counts.encode("ascii", "replace")}
        for h, w, counts in zip(height.tolist(), width.tolist(), masks["counts"].to_pylist(), strict=True)
    ]
    whole = np.array([_covers_image(rle) for rle in rles], bool)
    for row in np.flatnonzero(~whole)[:most]:
        yield f"row {row}: the run lengths do not cover {height[row]} x {width[row]} pixels"
    rows = np.flatnonzero(whole)
    if not len(rows):
        return
    area, box = area_and_box([rles[row] for row in rows])
    stored = np.stack([masks[name].to_numpy() for name in ("bbox_x", "bbox_y", "bbox_w", "bbox_h")], 1)[rows]
    stored_area = masks["area"].to_numpy()[rows]
    for i in np.flatnonzero(area != stored_area)[:most]:
        yield f"row {rows[i]}: decodes to {area[i]} pixels, stored area {stored_area[i]}"
    for i in np.flatnonzero((box != stored).any(1))[:most]:
        yield f"row {rows[i]}: decodes to box {box[i].tolist()}, stored {stored[i].tolist()}"


def _covers_image(rle: dict[str, Any]) -> bool:
    """pycocotools trusts its input: runs that are too long make it write outside its buffer. So look first."""
    try:
        return bool(RLEMask.from_dict(rle).is_valid_rle())
    except (ValueError, TypeError):
        return False
