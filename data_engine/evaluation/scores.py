"""How alike two masks are, and how large an object counts as."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

# COCO's sizes: pixels of the mask, from and below.
SIZES: Mapping[str, tuple[float, float]] = {
    "small": (0, 32**2),
    "medium": (32**2, 96**2),
    "large": (96**2, math.inf),
}
BOUNDARY_SHARE = 0.02  # of the image's diagonal


def iou(masks: np.ndarray, regions: np.ndarray) -> np.ndarray:
    """...xHxW bool, either broadcast against the other -> ... float. Two empty masks have 0."""
    both = (masks & regions).sum((-2, -1))
    return both / np.maximum((masks | regions).sum((-2, -1)), 1)


def boundary_iou(mask: np.ndarray, region: np.ndarray) -> float:
    """IoU of the boundaries of two HxW bool: of what lies within 2 % of the image's diagonal of the outside.

    Boundary IoU of Cheng et al. (arXiv 2103.16562) with its reference's square distance; the image's border is outside.
    """
    width = max(1, round(BOUNDARY_SHARE * math.hypot(*mask.shape)))
    return float(iou(boundary(mask, width), boundary(region, width)))


def boundary(mask: np.ndarray, width: int) -> np.ndarray:
    """HxW bool -> its pixels that have a pixel outside within `width` rows and columns."""
    edge = np.zeros_like(mask)
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return edge
    box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    # A pixel is inside if the square around it is full. Sums over squares are differences of sums from the corner.
    sums = np.pad(mask[box], width).cumsum(0, dtype=np.int32).cumsum(1, dtype=np.int32)
    sums = np.pad(sums, ((1, 0), (1, 0)))
    side = 2 * width + 1
    full = sums[side:, side:] - sums[:-side, side:] - sums[side:, :-side] + sums[:-side, :-side] == side * side
    edge[box] = mask[box] & ~full
    return edge


def size_of(area: np.ndarray) -> np.ndarray:
    """Pixels -> the name of the size, elementwise."""
    names = np.array(list(SIZES))
    return names[np.searchsorted([low for low, _ in SIZES.values()], area, side="right") - 1]
