"""Small islands and holes of a mask, found and removed on its runs.

The result is that of segment-anything's `remove_small_regions` (connected components of 8 neighbours with OpenCV),
at a cost that grows with the number of runs instead of the number of pixels.
"""

from __future__ import annotations

import numpy as np
from rlemasklib import RLEMask


def fill_holes(runs: RLEMask, min_area: int) -> RLEMask:
    """Fills background components below `min_area` pixels, also those at the border."""
    return runs.fill_small_holes(min_area, connectivity=8)


def remove_islands(runs: RLEMask, min_area: int) -> RLEMask:
    """Removes components below `min_area` pixels; when all are, the largest stays."""
    cleaned = runs.remove_small_components(min_area, connectivity=8)
    if cleaned.any() or not runs.any():
        return cleaned
    return _largest(runs)


def component_areas(runs: RLEMask) -> np.ndarray:
    """Pixels of each component; none for an empty mask."""
    stats = runs.connected_component_stats(connectivity=8)
    return np.zeros(0, np.int64) if stats is None else stats[0]


def _largest(runs: RLEMask) -> RLEMask:
    components = runs.connected_components(connectivity=8)
    areas = np.array([component.area() for component in components])
    tied = [components[i] for i in np.flatnonzero(areas == areas.max())]
    return tied[0] if len(tied) == 1 else min(tied, key=_label_order)


def _label_order(component: RLEMask) -> tuple[int, int]:
    """OpenCV numbers components in the order in which it meets them, block by block of 2x2 pixels; the reference keeps
    the first."""
    height = component.shape[0]
    ends = np.cumsum(component.counts, dtype=np.int64)
    starts, ends = ends[:-1:2], ends[1::2]  # runs of ones, column-major
    columns, rows = np.divmod(starts, height)
    wrapped = (ends - 1) // height > columns  # a run that goes on in the next column is at its top there
    rows, columns = np.append(rows, 0 * columns[wrapped]), np.append(columns, columns[wrapped] + 1)
    return min(zip((rows // 2).tolist(), (columns // 2).tolist(), strict=True))
