"""Overlay pictures of a dataset, written to a folder or store."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable

from data_engine.dataset.export.overlays import draw_overlay
from data_engine.dataset.reader import DatasetImage
from data_engine.images.decode import decode
from data_engine.images.settings import InputSettings
from data_engine.pipeline.commit import put
from data_engine.storage import join


def write_overlays(
    images: Iterable[tuple[DatasetImage, bytes | None]], destination: str, settings: InputSettings
) -> int:
    """Draws every image that has masks and whose original can be read. Returns how many pictures were written."""
    written = 0
    for number, (image, data) in enumerate(images):
        if data is None or not len(image):
            continue
        buffer = io.BytesIO()
        draw_overlay(decode(data, settings), image).save(buffer, "JPEG", quality=90)
        put(join(destination, f"{number:04d}-{_file_name(image.image_id)}.jpg"), buffer.getvalue())
        written += 1
    return written


def _file_name(image_id: str) -> str:
    """The last part of an id, made safe for every file system. The number in front keeps names apart."""
    stem = image_id.rsplit("/", 1)[-1].rsplit(".", 1)[0]
    return re.sub(r"[^\w.-]+", "_", stem)[:80] or "image"
