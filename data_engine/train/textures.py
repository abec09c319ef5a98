"""Textures without objects in them: what fills regions so that a boundary is more than a change of colour.

A texture is a float32 field of zero mean and unit deviation. They are drawn once from a fixed seed, and used as random
crops, flips and mixtures, because drawing one costs far more than cropping one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image
from scipy import ndimage

SIDE = 288


@dataclass(frozen=True, slots=True)
class TextureBank:
    fields: np.ndarray  # Kx288x288 float32

    @classmethod
    def drawn(cls, seed: int, count: int, photographs: list[np.ndarray]) -> TextureBank:
        """`count` procedural textures and, of every photograph, the brightness of a few random crops."""
        rng = np.random.default_rng([seed, 0])
        fields = [_KINDS[rng.integers(len(_KINDS))](rng) for _ in range(count)]
        for photograph in photographs:
            for _ in range(3):
                fields.append(_brightness_crop(rng, photograph))
        return cls(np.stack([_standardise(field) for field in fields]))

    def crop(self, rng: np.random.Generator, height: int, width: int) -> np.ndarray:
        """A height x width piece of a random texture, flipped or transposed at random; a large one is magnified."""
        if max(height, width) > SIDE:
            scale = -(-max(height, width) // SIDE)
            coarse = Image.fromarray(self.crop(rng, -(-height // scale), -(-width // scale)))
            return np.asarray(coarse.resize((width, height), Image.Resampling.BILINEAR))
        field = self.fields[rng.integers(len(self.fields))]
        if rng.random() < 0.5:
            field = field.T
        if rng.random() < 0.5:
            field = field[::-1]
        if max(height, width) * 2 <= SIDE and rng.random() < 0.5:  # small objects also carry fine texture
            field = field[::2, ::2]
        top = rng.integers(field.shape[0] - height + 1)
        left = rng.integers(field.shape[1] - width + 1)
        return field[top : top + height, left : left + width]


def smooth_noise(rng: np.random.Generator, height: int, width: int, cells: int) -> np.ndarray:
    """Random field with about `cells` bumps along its longer side, standard deviation about 0.7."""
    rows, columns = (max(2, round(cells * side / max(height, width)) + 1) for side in (height, width))
    coarse = Image.fromarray(rng.standard_normal((rows, columns), dtype=np.float32))
    return np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))


def _fractal(rng: np.random.Generator) -> np.ndarray:
    """Sum of octaves: the 1/f statistics of natural surfaces."""
    roughness = rng.uniform(0.4, 0.9)
    first = int(rng.integers(2, 5))
    octaves = [roughness**k * smooth_noise(rng, SIDE, SIDE, first * 2**k) for k in range(7)]
    return np.sum(octaves, axis=0)


def _grain(rng: np.random.Generator) -> np.ndarray:
    """Noise at one scale, often drawn out in one direction: fabric, grass, brushed metal."""
    sigma = rng.uniform(0.5, 4.0)
    return ndimage.gaussian_filter(
        rng.standard_normal((SIDE, SIDE), dtype=np.float32), (sigma, sigma * rng.uniform(0.3, 4))
    )


def _stripes(rng: np.random.Generator) -> np.ndarray:
    y, x = np.mgrid[:SIDE, :SIDE].astype(np.float32)
    angle, period = rng.uniform(0, np.pi), rng.uniform(4, 40)
    warp = smooth_noise(rng, SIDE, SIDE, int(rng.integers(2, 10))) * rng.uniform(0, 1.5)
    wave = np.sin(2 * np.pi * (x * np.cos(angle) + y * np.sin(angle)) / period + warp)
    return np.clip(wave * rng.uniform(0.7, 6), -1, 1)  # from a sine to hard bars


def _checks(rng: np.random.Generator) -> np.ndarray:
    return _stripes(rng) * _stripes(rng)


def _cells(rng: np.random.Generator) -> np.ndarray:
    """Voronoi cells as flat patches, as bumps or as cracks."""
    count = int(rng.integers(20, 400))
    seeds = np.zeros((SIDE, SIDE), bool)
    seeds[rng.integers(SIDE, size=count), rng.integers(SIDE, size=count)] = True
    distance, (rows, columns) = ndimage.distance_transform_edt(~seeds, return_indices=True)
    kind = rng.integers(3)
    if kind == 0:
        return rng.standard_normal((SIDE, SIDE), dtype=np.float32)[rows, columns]
    if kind == 1:
        return -distance.astype(np.float32)
    owner = rows * SIDE + columns
    edges = (owner != np.roll(owner, 1, 0)) | (owner != np.roll(owner, 1, 1))
    return ndimage.gaussian_filter(edges.astype(np.float32), rng.uniform(0.5, 1.5))


def _spots(rng: np.random.Generator) -> np.ndarray:
    field = ndimage.gaussian_filter(rng.standard_normal((SIDE, SIDE), dtype=np.float32), rng.uniform(2, 6))
    field /= field.std()
    return np.clip((field - rng.uniform(0, 1.5)) * rng.uniform(2, 8), -1, 1)


def _wood(rng: np.random.Generator) -> np.ndarray:
    y, x = np.mgrid[:SIDE, :SIDE].astype(np.float32) / SIDE
    warped = y * rng.uniform(5, 25) + 1.5 * smooth_noise(rng, SIDE, SIDE, 3) + x * rng.uniform(-1, 1)
    return np.sin(2 * np.pi * warped) + 0.6 * _grain(rng)


def _bricks(rng: np.random.Generator) -> np.ndarray:
    y, x = np.mgrid[:SIDE, :SIDE]
    tall = int(rng.integers(8, 30))
    wide = int(tall * rng.uniform(1, 3))
    row = y // tall
    column = (x + (row % 2) * (wide // 2) * (rng.random() < 0.8)) // wide
    tone = rng.normal(0, 0.5, (SIDE // tall + 2, SIDE // wide + 3))[row, column]
    joint = ((y % tall) < 2) | (((x + (row % 2) * (wide // 2)) % wide) < 2)
    return np.where(joint, rng.choice([-2.5, 2.5]), tone) + 0.3 * _grain(rng)


def _brightness_crop(rng: np.random.Generator, photograph: np.ndarray) -> np.ndarray:
    """A random square of a photograph, in grey, without its slow variation: texture and clutter."""
    side = int(rng.integers(96, min(photograph.shape[:2]) + 1))
    top, left = (int(rng.integers(length - side + 1)) for length in photograph.shape[:2])
    grey = photograph[top : top + side, left : left + side].astype(np.float32).mean(2)
    field = np.asarray(Image.fromarray(grey).resize((SIDE, SIDE), Image.Resampling.BICUBIC))
    return field - ndimage.gaussian_filter(field, 40)


def _standardise(field: np.ndarray) -> np.ndarray:
    field = field - field.mean()
    return (field / (field.std() + 1e-6)).astype(np.float32).clip(-3.5, 3.5)


_KINDS = [_fractal, _fractal, _fractal, _grain, _grain, _stripes, _checks, _cells, _spots, _wood, _bricks]
