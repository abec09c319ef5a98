"""The photographs that a benchmark measures on, in memory."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from data_engine.errors import SourceError
from data_engine.images.decode import decode
from data_engine.images.settings import InputSettings
from data_engine.images.shard import ImageError
from data_engine.images.sources import list_shards, read_shard
from data_engine.storage import redact


@dataclass(frozen=True, slots=True)
class Photograph:
    image_id: str
    data: bytes  # as the file holds them
    pixels: np.ndarray  # HxWx3 uint8 RGB


def read_photographs(uri: str, limit: int) -> list[Photograph]:
    """The first images of an input that can be decoded. Raises SourceError if none can, StorageError, UsageError."""
    settings = InputSettings()
    found: list[Photograph] = []
    for shard in list_shards(uri, settings).shards:
        for image in read_shard(shard, settings):
            if image.data is None:
                continue
            try:
                pixels = decode(image.data, settings)
            except ImageError:
                continue
            found.append(Photograph(image.image_id, image.data, pixels))
            if len(found) == limit:
                return found
    if not found:
        raise SourceError(f"{redact(uri)}: no image that can be decoded")
    return found
