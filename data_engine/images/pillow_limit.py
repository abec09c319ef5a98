"""Pillow's own limit of pixels, lifted where the settings allow more.

It is global to the process, and some decoders ask it by themselves: those of TIFF and WebP. It stays in force for
whatever else uses Pillow, and is out of force only while an image above it is decoded, whose size has been checked.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock

from PIL import Image


class PillowLimit:
    """`Image.MAX_IMAGE_PIXELS`, put away as long as anybody decodes an image above it. Safe among threads."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._users = 0
        self._limit: int | None = None

    @contextmanager
    def lifted_for(self, size: tuple[int, int]) -> Iterator[None]:
        """While an image of `size` (width, height) is decoded."""
        with self._lock:
            limit = self._limit if self._users else Image.MAX_IMAGE_PIXELS
            above = limit is not None and size[0] * size[1] > limit
            if above:
                self._limit, Image.MAX_IMAGE_PIXELS = limit, None
                self._users += 1
        try:
            yield
        finally:
            if above:
                with self._lock:
                    self._users -= 1
                    if not self._users:
                        Image.MAX_IMAGE_PIXELS = self._limit
