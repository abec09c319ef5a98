"""Where to click: in the middle of the object at first, then in the middle of the largest mistake.

The protocol of SAM (arXiv 2304.02643) and RITM (arXiv 2102.06583). A middle is the pixel farthest from the outside, by
the exact Euclidean distance; of several, the first in row-major order. Nothing is random.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from data_engine.evaluation.optional import optional

FOREGROUND, BACKGROUND = 1, 0

Click = tuple[int, int, int]  # x, y, label


def first_click(truth: np.ndarray) -> Click:
    """The middle of a HxW mask."""
    return (*deepest_point(truth), FOREGROUND)


def next_click(truth: np.ndarray, answer: np.ndarray, clicked: Sequence[Click] = ()) -> Click:
    """The middle of what the answer misses (foreground) or of what it has too much (background), whichever is deeper.

    Pixels that were clicked are not clicked again. Where nothing is wrong, the first click is repeated.
    """
    (missed_depth, missed), (excess_depth, excess) = (
        _deepest(wrong, clicked) for wrong in (truth & ~answer, answer & ~truth)
    )
    if max(missed_depth, excess_depth) == 0:
        return first_click(truth)
    return (*missed, FOREGROUND) if missed_depth >= excess_depth else (*excess, BACKGROUND)


def deepest_point(region: np.ndarray) -> tuple[int, int]:
    """(x, y) of the pixel of a HxW mask that is farthest from its outside. The image's border bounds a region too."""
    return _deepest(region, ())[1]


def _deepest(region: np.ndarray, leave_out: Sequence[Click]) -> tuple[float, tuple[int, int]]:
    """Depth, (x, y); depth 0 where there is no pixel left."""
    rows, columns = np.flatnonzero(region.any(1)), np.flatnonzero(region.any(0))
    if not len(rows):
        return 0.0, (0, 0)
    top, left = int(rows[0]), int(columns[0])
    inside = region[top : rows[-1] + 1, left : columns[-1] + 1]
    # Outside of its box is no region: one row and column of that around the box are the nearest of it.
    depth = optional("scipy.ndimage").distance_transform_edt(np.pad(inside, 1))[1:-1, 1:-1]
    for x, y, _ in leave_out:
        if 0 <= y - top < depth.shape[0] and 0 <= x - left < depth.shape[1]:
            depth[y - top, x - left] = 0
    y, x = np.unravel_index(depth.argmax(), depth.shape)
    return float(depth[y, x]), (left + int(x), top + int(y))
