"""Where to look and where to click: crop windows and point grids.

The arithmetic is that of segment-anything's `utils/amg.py` (generate_crop_boxes, build_point_grid).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import product

import numpy as np

from data_engine.masks.settings import MaskSettings


@dataclass(frozen=True, slots=True)
class CropWindow:
    """A window of the image, in pixels, right and bottom exclusive. Layer 0 is the whole image."""

    x0: int
    y0: int
    x1: int
    y1: int
    layer: int

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width)"""
        return self.y1 - self.y0, self.x1 - self.x0

    @property
    def area(self) -> int:
        return (self.y1 - self.y0) * (self.x1 - self.x0)


def crop_windows(height: int, width: int, n_layers: int, overlap_ratio: float) -> list[CropWindow]:
    """The whole image, then layer by layer 2^i x 2^i overlapping windows, columns first.

    Windows that fall outside a tiny image are left out (the reference fails on them).
    """
    windows = [CropWindow(0, 0, width, height, 0)]
    for layer in range(1, n_layers + 1):
        per_side = 2**layer
        overlap = int(overlap_ratio * min(height, width) * (2 / per_side))
        crop_width, crop_height = (math.ceil((overlap * (per_side - 1) + side) / per_side) for side in (width, height))
        for column, row in product(range(per_side), repeat=2):
            x0, y0 = (crop_width - overlap) * column, (crop_height - overlap) * row
            if x0 < width and y0 < height:
                windows.append(CropWindow(x0, y0, min(x0 + crop_width, width), min(y0 + crop_height, height), layer))
    return windows


def point_grid(points_per_side: int) -> np.ndarray:
    """(points_per_side^2)x2 (x, y) in [0, 1], row by row, each point in the middle of its cell."""
    offset = 1 / (2 * points_per_side)
    side = np.linspace(offset, 1 - offset, points_per_side)
    x, y = np.meshgrid(side, side)
    return np.stack([x, y], axis=-1).reshape(-1, 2)


def layer_point_grids(settings: MaskSettings) -> list[np.ndarray]:
    """One grid a crop layer."""
    if settings.point_grids is not None:
        return [np.asarray(grid, dtype=np.float64).reshape(-1, 2) for grid in settings.point_grids]
    assert settings.points_per_side is not None
    factor = settings.crop_n_points_downscale_factor
    return [point_grid(int(settings.points_per_side / factor**i)) for i in range(settings.crop_n_layers + 1)]
