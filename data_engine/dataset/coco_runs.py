"""Areas and boxes of COCO run lengths, by pycocotools.

Its calls number the masks with the type of `len(rles) + something` under NumPy 2: from 256 masks on, a uint8 overflows
(OverflowError). So they are made on a few masks at a time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pycocotools import mask as coco

_AT_ONCE = 255


def area_and_box(rles: Sequence[Mapping[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
    """Compressed run lengths -> areas N int64, boxes Nx4 int64 (x, y, w, h). They must be valid: nothing is checked."""
    groups = [list(rles[start : start + _AT_ONCE]) for start in range(0, len(rles), _AT_ONCE)]
    areas = [coco.area(group).astype(np.int64) for group in groups]
    boxes = [coco.toBbox(group).astype(np.int64) for group in groups]
    return (
        np.concatenate([np.empty(0, np.int64), *areas]),
        np.concatenate([np.empty((0, 4), np.int64), *boxes]),
    )
