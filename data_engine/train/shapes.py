"""Random silhouettes: the outlines that procedural scenes are made of.

A silhouette is drawn at twice its size and averaged down, so its edge is anti-aliased as a camera's would be:
every function returns coverage in [0, 1], float32 SxS.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

_SUPERSAMPLING = 2
_LETTERS = "ABCDEFGHJKLMNPQRSTUVWXYZabdeghkmnpqrstuy0123456789&@#?%"

Outline = Callable[[np.random.Generator, int], np.ndarray]


def silhouette(rng: np.random.Generator, size: int) -> np.ndarray:
    """One outline of a random family, roughly filling a square of side `size`."""
    family: Outline = _FAMILIES[rng.choice(len(_FAMILIES), p=_FREQUENCIES)]
    return family(rng, max(size, 3))


def polygon(rng: np.random.Generator, size: int) -> np.ndarray:
    """Star-shaped polygon: from a triangle to a jagged star."""
    corners = int(rng.integers(3, 9))
    angles = np.sort(rng.uniform(0, 2 * np.pi, corners)) if rng.random() < 0.5 else _even_angles(rng, corners)
    radii = rng.uniform(rng.uniform(0.3, 1.0), 1.0, corners)
    return _fill(size, _stretch(rng, np.stack([radii * np.cos(angles), radii * np.sin(angles)], 1)))


def blob(rng: np.random.Generator, size: int) -> np.ndarray:
    """Smooth closed curve: a circle whose radius is a short random Fourier series."""
    angles = np.linspace(0, 2 * np.pi, 64, endpoint=False)
    radii = np.ones_like(angles)
    for frequency in range(2, int(rng.integers(3, 9))):
        radii += rng.normal(0, 0.45 / frequency) * np.cos(frequency * angles + rng.uniform(0, 2 * np.pi))
    radii = np.clip(radii, 0.15, None)
    points = np.stack([np.cos(angles), np.sin(angles)], 1) * (radii / radii.max())[:, None]
    return _fill(size, _stretch(rng, points))


def ellipse(rng: np.random.Generator, size: int) -> np.ndarray:
    angles = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    return _fill(size, _stretch(rng, np.stack([np.cos(angles), np.sin(angles)], 1)))


def box(rng: np.random.Generator, size: int) -> np.ndarray:
    """Rectangle or trapezium, upright more often than not."""
    taper = rng.uniform(0.4, 1.0) if rng.random() < 0.3 else 1.0
    corners = np.array([(-1, -1), (1, -1), (taper, 1), (-taper, 1)], dtype=float)
    corners *= (
        np.array([1.0, rng.uniform(0.15, 1.0)]) if rng.random() < 0.5 else np.array([rng.uniform(0.15, 1.0), 1.0])
    )
    if rng.random() < 0.4:
        corners = _rotate(corners, rng.normal(0, 0.5))
    return _fill(size, corners / np.abs(corners).max())


def stroke(rng: np.random.Generator, size: int) -> np.ndarray:
    """Bent line of some thickness: limbs, poles, cables, handles."""
    knots = rng.uniform(-0.85, 0.85, (int(rng.integers(2, 5)), 2))
    if rng.random() < 0.4:  # poles and table tops are straight
        knots = np.linspace(knots[0], knots[1], 3)
    t = np.linspace(0, 1, 24)[:, None]
    curve = _bezier(knots, t)
    half = max(1.0, size * rng.uniform(0.015, 0.13))
    scale = size * _SUPERSAMPLING
    canvas = Image.new("L", (scale, scale))
    draw = ImageDraw.Draw(canvas)
    centres = (curve + 1) / 2 * scale
    width = half * 2 * _SUPERSAMPLING
    draw.line([tuple(point) for point in centres], fill=255, width=round(width), joint="curve")
    for x, y in centres[[0, -1]]:
        draw.ellipse((x - width / 2, y - width / 2, x + width / 2, y + width / 2), fill=255)
    return _coverage(canvas)


def glyph(rng: np.random.Generator, size: int) -> np.ndarray:
    scale = size * _SUPERSAMPLING
    canvas = Image.new("L", (scale, scale))
    letter = _LETTERS[rng.integers(len(_LETTERS))]
    ImageDraw.Draw(canvas).text((scale / 2, scale / 2), letter, 255, ImageFont.load_default(scale * 1.1), anchor="mm")
    return _coverage(canvas.rotate(rng.normal(0, 20), Image.Resampling.BILINEAR))


def ring(rng: np.random.Generator, size: int) -> np.ndarray:
    """An ellipse with an elliptic hole: wheels, rims, handles."""
    outer = ellipse(rng, size)
    inside = ndimage.zoom(outer, rng.uniform(0.4, 0.85), order=1)
    hole = np.zeros_like(outer)
    offset = (size - len(inside)) // 2
    hole[offset : offset + len(inside), offset : offset + len(inside)] = inside
    return outer * (1 - hole)


def cloud(rng: np.random.Generator, size: int) -> np.ndarray:
    """Where smooth noise is high: irregular natural outlines, with bays and holes."""
    cells = int(rng.integers(3, 9))
    field = Image.fromarray(rng.normal(size=(cells, cells)).astype(np.float32)).resize(
        (size, size), Image.Resampling.BICUBIC
    )
    y, x = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j]
    height = np.asarray(field) * rng.uniform(0.2, 0.7) + 0.8 - 1.4 * (x**2 + y**2)
    pieces, count = ndimage.label(height > 0)
    if not count:
        return ellipse(rng, size)
    largest = pieces == 1 + np.argmax(np.bincount(pieces.ravel())[1:])
    slope = size * 0.12
    return np.where(largest, np.clip(height * slope + 0.5, 0, 1), 0).astype(np.float32)


def compound(rng: np.random.Generator, size: int) -> np.ndarray:
    """A body with things attached to it."""
    return np.max(limbs(rng, size), axis=0)


def limbs(rng: np.random.Generator, size: int) -> list[np.ndarray]:
    """The pieces of a compound, each in the same square, every one of them touching the first."""
    body_size = max(3, round(size * rng.uniform(0.45, 0.8)))
    body = _place(simple(rng, body_size), size, (size - body_size) / 2, (size - body_size) / 2)
    pieces = [body]
    ys, xs = np.nonzero(body > 0.5)
    if not len(ys):
        return pieces
    for _ in range(int(rng.integers(1, 5))):
        side = max(3, round(size * rng.uniform(0.15, 0.5)))
        at = rng.integers(len(ys))
        shift = rng.normal(0, side * 0.25, 2)
        pieces.append(_place(simple(rng, side), size, ys[at] - side / 2 + shift[0], xs[at] - side / 2 + shift[1]))
    return pieces


def simple(rng: np.random.Generator, size: int) -> np.ndarray:
    """One outline of a family that is not itself made of others."""
    return _SIMPLE[rng.integers(len(_SIMPLE))](rng, size)


def _place(piece: np.ndarray, size: int, top: float, left: float) -> np.ndarray:
    side = len(piece)
    top, left = (int(np.clip(round(offset), 0, size - side)) for offset in (top, left))
    canvas = np.zeros((size, size), np.float32)
    canvas[top : top + side, left : left + side] = piece
    return canvas


def _even_angles(rng: np.random.Generator, corners: int) -> np.ndarray:
    return 2 * np.pi * (np.arange(corners) / corners + rng.random())


def _stretch(rng: np.random.Generator, points: np.ndarray) -> np.ndarray:
    """Random aspect ratio and rotation, then scaled to touch the square [-1, 1]."""
    points = _rotate(points * np.array([1.0, rng.uniform(0.3, 1.0)]), rng.uniform(0, 2 * np.pi))
    return points / np.abs(points).max()


def _rotate(points: np.ndarray, angle: float) -> np.ndarray:
    cos, sin = np.cos(angle), np.sin(angle)
    return points @ np.array([[cos, sin], [-sin, cos]])


def _bezier(knots: np.ndarray, t: np.ndarray) -> np.ndarray:
    """Points of the curve by de Casteljau's construction."""
    points = list(knots)
    while len(points) > 1:
        points = [a + (b - a) * t for a, b in pairwise(points)]
    return points[0]


def _fill(size: int, points: np.ndarray) -> np.ndarray:
    """The polygon through points in [-1, 1]."""
    scale = size * _SUPERSAMPLING
    canvas = Image.new("L", (scale, scale))
    ImageDraw.Draw(canvas).polygon([tuple(point) for point in (points + 1) / 2 * (scale - 1)], fill=255)
    return _coverage(canvas)


def _coverage(canvas: Image.Image) -> np.ndarray:
    return np.asarray(canvas.reduce(_SUPERSAMPLING), dtype=np.float32) / 255


_SIMPLE: list[Outline] = [blob, ellipse, box, polygon, stroke]
_FAMILIES: list[Outline] = [polygon, blob, ellipse, box, stroke, glyph, ring, cloud, compound]
_FREQUENCIES = [0.1, 0.18, 0.12, 0.14, 0.1, 0.04, 0.05, 0.12, 0.15]
