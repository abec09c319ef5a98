"""Pictures for people: the masks of an image drawn over it."""

from __future__ import annotations

import colorsys
import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from PIL import Image

from data_engine.dataset.export.format import Context, ExportImage, Finished, PieceTarget
from data_engine.dataset.reader import DatasetImage

OPACITY = 0.5
MAX_SIDE = 1200
JPEG_QUALITY = 90


@dataclass(frozen=True, slots=True, kw_only=True)
class Overlays:
    """<number>-<name>.jpg for every image that has masks."""

    name: ClassVar[str] = "overlays"
    needs_originals: ClassVar[bool] = True
    has_categories: ClassVar[bool] = False
    images_per_piece: ClassVar[int] = 100

    def write(self, images: Iterator[ExportImage], target: PieceTarget, context: Context) -> None:
        for item in images:
            buffer = io.BytesIO()
            picture = draw_overlay(context.pictures.decode(item.original), item.image)
            picture.save(buffer, "JPEG", quality=JPEG_QUALITY)
            target.put(f"{item.name}.jpg", buffer.getvalue())
            target.wrote(item.image)

    def finish(self, export: Finished) -> list[str]:  # noqa: ARG002 - nothing describes the whole
        return []


def draw_overlay(pixels: np.ndarray, image: DatasetImage, max_side: int = MAX_SIDE) -> Image.Image:
    """HxWx3 uint8 and its masks -> a picture with each mask in a colour of its own, outlined in white.

    Large masks are drawn first, so that small ones stay visible. The long side is at most `max_side`.
    """
    height, width = pixels.shape[:2]
    canvas = pixels.astype(np.float32)
    order = np.argsort(-image.masks["area"].to_numpy(), kind="stable")
    for rank, index in enumerate(order.tolist()):
        mask = image.mask(index)
        canvas[mask] = (1 - OPACITY) * canvas[mask] + OPACITY * _colour(rank)
        canvas[_outline(mask, thickness=max(1, max(height, width) // 600))] = 255
    picture = Image.fromarray(canvas.round().astype(np.uint8))
    picture.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
    return picture


def _colour(rank: int) -> np.ndarray:
    """Neighbouring ranks get hues far apart (steps of the golden ratio)."""
    return 255 * np.array(colorsys.hsv_to_rgb((rank * 0.61803398875) % 1, 0.75, 0.95), np.float32)


def _outline(mask: np.ndarray, thickness: int) -> np.ndarray:
    """Pixels of the mask within `thickness` steps of its border."""
    inside = mask.copy()
    for _ in range(thickness):
        smaller = inside.copy()
        smaller[1:] &= inside[:-1]
        smaller[:-1] &= inside[1:]
        smaller[:, 1:] &= inside[:, :-1]
        smaller[:, :-1] &= inside[:, 1:]
        inside = smaller
    return mask & ~inside
