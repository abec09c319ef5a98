"""Masks as polygons: exact outlines along the edges of pixels, then simplified.

A corner of an outline is a point between pixels where its direction changes. Corners of a row, read from left to right,
are joined in pairs by horizontal edges, those of a column by vertical ones; following the two in turn walks an outline.
Pixel (y, x) covers [x, x + 1] x [y, y + 1], as in COCO's polygons, so that an outline that is not simplified encloses
exactly the mask. Pieces that touch at a corner are one piece, as in segment-anything (connectivity 8).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from rlemasklib import RLEMask

MIN_POINTS = 3


@dataclass(frozen=True, slots=True)
class Outlines:
    """The outer outlines of a mask, largest first."""

    rings: list[np.ndarray]  # each Px2 float64, x and y in pixels, not closed
    holes: int  # outlines of holes, which are not among them
    dropped: int  # pieces of which simplifying left no polygon


def mask_polygons(mask: Mapping[str, Any], tolerance: float) -> Outlines:
    """A row of the masks table -> its outer outlines, each simplified by at most `tolerance` pixels.

    Pieces of which simplifying leaves nothing, such as lines of a pixel's width, are dropped; the largest piece is then
    left as it is, where it would be the last one.
    """
    patch, (y, x) = mask_patch(mask)
    outer, holes = outlines(patch)
    pieces = sorted(outer, key=_area, reverse=True)
    simple = [simplify(ring, tolerance) for ring in pieces]
    rings = [ring for ring in simple if len(ring) >= MIN_POINTS and _area(ring) > 0] or pieces[:1]
    return Outlines([ring + np.array([x, y]) for ring in rings], len(holes), len(pieces) - len(rings))


def mask_patch(mask: Mapping[str, Any]) -> tuple[np.ndarray, tuple[int, int]]:
    """A row of the masks table -> the part within its box, HxW bool, and the y and x where it lies."""
    x, y, w, h = (mask[f"bbox_{side}"] for side in "xywh")
    rle = RLEMask.from_dict({"size": [mask["height"], mask["width"]], "counts": mask["counts"].encode("ascii")})
    return rle.crop([x, y, w, h]).to_array().astype(bool), (y, x)


def outlines(mask: np.ndarray) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """HxW bool -> (outer outlines, outlines of holes), each Px2 float64: the x and y of its corners."""
    ys, xs, by_row, by_column = _corners(mask)
    along_row, along_column = _partners(by_row), _partners(by_column)
    outer: list[np.ndarray] = []
    holes: list[np.ndarray] = []
    seen = bytearray(len(ys))
    for start in range(len(ys)):
        if seen[start]:
            continue
        ring, at = [], start
        while not seen[at]:
            other = along_row[at]
            seen[at] = seen[other] = 1
            ring += [at, other]
            at = along_column[other]
        # `start` is the first of its ring from above and left: the pixel below and right of it lies inside the ring
        inside = mask[ys[start], xs[start]]
        (outer if inside else holes).append(np.stack([xs[ring], ys[ring]], 1).astype(np.float64))
    return outer, holes


def simplify(ring: np.ndarray, tolerance: float) -> np.ndarray:
    """Px2 -> the corners of a polygon that no point of the ring is farther from than `tolerance` (Douglas-Peucker)."""
    if tolerance <= 0 or len(ring) <= MIN_POINTS:
        return ring
    far = int(np.argmax(((ring - ring[0]) ** 2).sum(1)))
    closed = np.concatenate([ring, ring[:1]])
    keep = np.zeros(len(closed), bool)
    keep[[0, far]] = True
    stack = [(0, far), (far, len(ring))]
    while stack:
        first, last = stack.pop()
        if last - first < 2:
            continue
        distances = _distances(closed[first + 1 : last], closed[first], closed[last])
        worst = int(np.argmax(distances))
        if distances[worst] > tolerance:
            middle = first + 1 + worst
            keep[middle] = True
            stack += [(first, middle), (middle, last)]
    return ring[keep[:-1]]


def _corners(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """y and x of every corner in row order; the order itself, and the order along columns.

    Where two pixels touch at a point only, two corners lie on it.
    """
    padded = np.pad(mask, 1)
    a, b, c, d = padded[:-1, :-1], padded[:-1, 1:], padded[1:, :-1], padded[1:, 1:]
    odd = a ^ b ^ c ^ d
    touching = (a == d) & (b == c) & (a != b)
    ys, xs = np.nonzero(odd | touching)
    twice = touching[ys, xs]
    falling = a[ys, xs]  # of those that touch: the set pixels are upper left and lower right
    ys, xs, falling = (np.repeat(values, 1 + twice) for values in (ys, xs, falling))
    # The first corner of a pair ends an edge from the left, the second begins one to the right. Upper left and lower
    # right are one piece: the edge from the left goes on downwards, in the order of columns it is the second.
    second = np.zeros(len(ys), bool)
    second[1:] = (ys[1:] == ys[:-1]) & (xs[1:] == xs[:-1])
    pair = second.copy()
    pair[:-1] |= second[1:]
    along_column = np.where(pair & falling, ~second, second)
    return ys, xs, np.arange(len(ys)), np.lexsort((along_column, ys, xs))


def _partners(order: np.ndarray) -> list[int]:
    """Corners in the order of a line: the first is joined with the second, the third with the fourth."""
    partners = np.empty(len(order), np.int64)
    partners[order[0::2]], partners[order[1::2]] = order[1::2], order[0::2]
    return partners.tolist()


def _area(ring: np.ndarray) -> float:
    x, y = ring[:, 0], ring[:, 1]
    return abs(float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1)))) / 2


def _distances(points: np.ndarray, first: np.ndarray, last: np.ndarray) -> np.ndarray:
    """Of points from a segment."""
    line = last - first
    length = float(line @ line)
    if length == 0:
        return np.sqrt(((points - first) ** 2).sum(1))
    along = np.clip(((points - first) @ line) / length, 0, 1)
    return np.sqrt(((points - first - along[:, None] * line) ** 2).sum(1))
