"""Prompts for a scene and the masks that answer them.

A click is ambiguous: it may mean the whole, the part or the subpart under it. A click therefore comes with up to three
valid targets, coarsest first. A box means one region.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from data_engine.train.scene import Scene

TARGETS = 3
SAME = 0.9  # regions of two levels with at least this IoU are one target
_SMALLEST_CELLS = 10  # of the mask: a region of fewer cannot be drawn, and is not worth a prompt


@dataclass(frozen=True, slots=True)
class Prompts:
    """C clicks, then B boxes, in pixels of the input frame. P = C + B."""

    clicks: np.ndarray  # Cx2 float32 (x, y)
    boxes: np.ndarray  # Bx4 float32 (x0, y0, x1, y1)
    targets: np.ndarray  # Px3x(4G)x(4G) bool
    valid: np.ndarray  # Px3 bool: which of a prompt's targets there are; at least one


def sample_prompts(
    rng: np.random.Generator, scene: Scene, *, clicks: int, boxes: int, frame: int, mask_side: int, grid_share: float
) -> Prompts | None:
    """Random prompts on a scene that lies in the top-left of a frame x frame input; None if it has no region to prompt.

    `grid_share` of the clicks are points of a regular grid, as automatic mask generation uses; the others come from
    regions chosen uniformly, so that small ones are not forgotten.
    """
    smallest = _SMALLEST_CELLS * (frame // mask_side) ** 2
    areas = [np.bincount(level.ravel()) for level in scene.levels]
    regions = [
        (level, number) for level in range(TARGETS) for number in np.flatnonzero(areas[level] >= smallest) if number
    ]
    if not regions:
        return None
    large_enough = np.any([area[level] >= smallest for area, level in zip(areas, scene.levels, strict=True)], axis=0)
    large_enough &= np.any(scene.levels > 0, axis=0)
    height, width = scene.image.shape[:2]
    depth = _depth(scene.levels)
    points = []
    for _ in range(clicks):
        if rng.random() < grid_share:
            side = int(rng.choice((8, 16, 32)))
            x = int((rng.integers(side) + 0.5) / side * width)
            y = int((rng.integers(side) + 0.5) / side * height)
            if large_enough[y, x]:
                points.append((x, y))
                continue
        level, number = regions[rng.integers(len(regions))]
        points.append(_interior_point(rng, scene.levels[level] == number, depth[level]))
    extents, masks, valid = (
        [],
        np.zeros((clicks + boxes, TARGETS, height, width), bool),
        np.zeros((clicks + boxes, TARGETS), bool),
    )
    for index, (x, y) in enumerate(points):
        masks[index] = scene.levels == scene.levels[:, y, x][:, None, None]
        valid[index] = _distinct(
            np.array([areas[k][scene.levels[k, y, x]] for k in range(TARGETS)]), scene.levels[:, y, x], smallest
        )
    for index in range(clicks, clicks + boxes):
        level, number = regions[rng.integers(len(regions))]
        masks[index, 0] = scene.levels[level] == number
        valid[index, 0] = True
        extents.append(_loose_box(rng, masks[index, 0]))
    return Prompts(
        clicks=np.array(points, np.float32).reshape(-1, 2) + rng.uniform(-0.5, 0.5, (clicks, 2)).astype(np.float32),
        boxes=np.array(extents, np.float32).reshape(-1, 4),
        targets=shrink(masks, frame, mask_side),
        valid=valid,
    )


def shrink(masks: np.ndarray, frame: int, side: int) -> np.ndarray:
    """...xHxW bool in the top-left of the frame -> ...xsidexside bool: set where at least half of a cell is."""
    factor = frame // side
    height, width = masks.shape[-2:]
    padded = np.pad(masks, [(0, 0)] * (masks.ndim - 2) + [(0, -height % factor), (0, -width % factor)])
    rows = padded[..., 0::factor, :].astype(np.uint8)
    for offset in range(1, factor):
        rows += padded[..., offset::factor, :]
    cells = rows[..., 0::factor].copy()
    for offset in range(1, factor):
        cells += rows[..., offset::factor]
    small = np.zeros((*masks.shape[:-2], side, side), bool)
    small[..., : cells.shape[-2], : cells.shape[-1]] = cells * 2 >= factor * factor
    return small


def _distinct(areas: np.ndarray, numbers: np.ndarray, smallest: int) -> np.ndarray:
    """Which of three nested targets to keep: known, large enough, and not the same mask as a coarser one.

    The regions are nested, so the IoU of two is the ratio of their areas.
    """
    keep = (numbers > 0) & (areas >= smallest)
    for k in range(1, TARGETS):
        keep[k] &= not any(keep[j] and areas[k] >= SAME * areas[j] for j in range(k))
    return keep


def _depth(levels: np.ndarray) -> np.ndarray:
    """Distance of every pixel to its region's boundary, for each level, at half resolution and interpolated back."""
    depths = np.empty(levels.shape, np.float32)
    for level, depth in zip(levels, depths, strict=True):
        half = level[::2, ::2]
        inside = np.ones(half.shape, bool)
        inside[:, 1:] &= half[:, 1:] == half[:, :-1]
        inside[1:] &= half[1:] == half[:-1]
        inside = np.pad(inside, 1)  # the border of the image is a boundary too
        distance = ndimage.distance_transform_edt(inside)[1:-1, 1:-1]
        depth[:] = distance.repeat(2, 0).repeat(2, 1)[: level.shape[0], : level.shape[1]]
    return depths


def _interior_point(rng: np.random.Generator, mask: np.ndarray, depth: np.ndarray) -> tuple[int, int]:
    """Of up to four random pixels, the one deepest inside: people click near the middle, grids anywhere."""
    ys, xs = np.nonzero(mask)
    chosen = rng.integers(len(ys), size=int(rng.integers(1, 5)))
    best = chosen[np.argmax(depth[ys[chosen], xs[chosen]])]
    return int(xs[best]), int(ys[best])


def _loose_box(rng: np.random.Generator, mask: np.ndarray) -> np.ndarray:
    """The mask's bounding box, its corners off by up to a tenth of its side."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    box = np.array([columns[0], rows[0], columns[-1], rows[-1]], np.float32)
    sides = np.tile(box[2:] - box[:2], 2)
    noise = np.clip(rng.normal(0, 0.05, 4), -0.1, 0.1) * rng.integers(0, 2)
    limits = np.tile(np.array(mask.shape[::-1], np.float32) - 1, 2)
    return np.clip(box + noise * sides, 0, limits)
