"""A mask to judge as a picture: its surroundings as they are, and again with the mask's outline."""

from __future__ import annotations

import numpy as np
from PIL import Image

_CONTEXT = 0.6  # of the longer side of the mask's box, on every side
_LEAST_CONTEXT = 0.08  # of the longer side of the image
_SIDE = 640  # of each of the two pictures
_LINE = np.array([255, 40, 160], np.uint8)  # seldom a color of a photograph, with a dark rim


def window(box: tuple[int, int, int, int], width: int, height: int) -> tuple[int, int, int, int]:
    """(x0, y0, x1, y1), ends exclusive: the box x, y, w, h with its surroundings, inside the image."""
    x, y, w, h = box
    margin = round(max(_CONTEXT * max(w, h), _LEAST_CONTEXT * max(width, height), 1))
    return max(x - margin, 0), max(y - margin, 0), min(x + w + margin, width), min(y + h + margin, height)


def draw_crop(pixels: np.ndarray, counts: str, box: tuple[int, int, int, int]) -> Image.Image:
    """HxWx3 uint8, the mask's COCO counts and its box x, y, w, h -> both pictures side by side."""
    from data_engine.masks.rle import decode, from_counts_string  # brings torch, which a viewer begins without

    height, width = pixels.shape[:2]
    x0, y0, x1, y1 = window(box, width, height)
    mask = decode(from_counts_string(counts, height, width))[y0:y1, x0:x1]
    scale = _SIDE / max(x1 - x0, y1 - y0)
    size = (max(round((x1 - x0) * scale), 1), max(round((y1 - y0) * scale), 1))
    plain = Image.fromarray(pixels[y0:y1, x0:x1]).resize(size, Image.Resampling.LANCZOS)
    inside = np.asarray(Image.fromarray(mask).convert("L").resize(size, Image.Resampling.NEAREST)) > 0
    lined = np.array(plain)
    rim = _grown(inside, 2)
    lined[rim & ~inside] = _LINE
    lined[_grown(rim, 1) & ~rim] = 0
    both = Image.new("RGB", (2 * size[0] + 8, size[1]), "white")
    both.paste(plain, (0, 0))
    both.paste(Image.fromarray(lined), (size[0] + 8, 0))
    return both


def _grown(mask: np.ndarray, steps: int) -> np.ndarray:
    for _ in range(steps):
        padded = np.pad(mask, 1)
        mask = mask | padded[:-2, 1:-1] | padded[2:, 1:-1] | padded[1:-1, :-2] | padded[1:-1, 2:]
    return mask
