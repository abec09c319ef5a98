"""Encoded bytes -> a picture that a browser shows, upright and no larger than asked. Masks are never drawn here."""

from __future__ import annotations

import io
import os
from threading import BoundedSemaphore

from PIL import Image, JpegImagePlugin

from data_engine.images.decode import decode, is_plain_jpeg
from data_engine.images.settings import InputSettings

_QUALITY = 88
_decoders = BoundedSemaphore(max(2, os.cpu_count() or 2))  # large pictures take much memory while they are decoded


def picture(data: bytes, settings: InputSettings, side: int) -> bytes:
    """A JPEG whose longer side has at most `side` pixels (0: all of them). Raises ImageError.

    A plain JPEG that is small enough is passed on as it is.
    """
    with _decoders:
        return _picture(data, settings, side)


def _picture(data: bytes, settings: InputSettings, side: int) -> bytes:
    plain = is_plain_jpeg(data)
    if plain and (not side or max(_size(data)) <= side):
        return data
    image = _reduced_jpeg(data, side) if plain and _pixels(data) <= settings.max_pixels else None
    if image is None:
        image = Image.fromarray(decode(data, settings))
    if side and max(image.size) > side:
        image.thumbnail((side, side), Image.Resampling.BILINEAR, reducing_gap=2.0)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=_QUALITY)
    return buffer.getvalue()


def _reduced_jpeg(data: bytes, side: int) -> Image.Image | None:
    """Decoded at a half, quarter or eighth of its size, which is several times faster. None where it is damaged."""
    if not side:
        return None
    try:
        image = JpegImagePlugin.jpeg_factory(io.BytesIO(data))
        image.draft("RGB", (side, side))
        image.load()
    except (OSError, SyntaxError):
        return None
    return image if image.mode == "RGB" else None


def _size(data: bytes) -> tuple[int, int]:
    return JpegImagePlugin.jpeg_factory(io.BytesIO(data)).size


def _pixels(data: bytes) -> int:
    width, height = _size(data)
    return width * height
