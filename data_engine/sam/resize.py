"""The geometry between an image and the model's square input frame: long side to S, top-left aligned.

The arithmetic is segment-anything's `utils/transforms.py` (ResizeLongestSide); the resampling is Pillow's
antialiased bilinear on uint8, which is what the released weights were evaluated with.
"""

from __future__ import annotations

import numpy as np
from PIL import Image


def resized_shape(height: int, width: int, long_side: int) -> tuple[int, int]:
    """(height, width) after scaling the long side to `long_side`. A side may round to 0: see `resize_image`."""
    scale = long_side / max(height, width)
    return int(height * scale + 0.5), int(width * scale + 0.5)


def resize_image(image: np.ndarray, long_side: int) -> np.ndarray:
    """HxWx3 uint8 -> hxwx3 uint8 with the long side at `long_side`.

    A side that would round to 0 (aspect ratios beyond 2 * long_side, where the reference raises) becomes 1 pixel.
    """
    height, width = (max(side, 1) for side in resized_shape(image.shape[0], image.shape[1], long_side))
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))


def scale_points(points: np.ndarray, shape: tuple[int, int], long_side: int) -> np.ndarray:
    """...x2 (x, y) in pixels of an image of `shape` (height, width) -> the input frame, float64."""
    height, width = shape
    new_height, new_width = (max(side, 1) for side in resized_shape(height, width, long_side))
    return np.asarray(points, dtype=np.float64) * np.array([new_width / width, new_height / height])
