"""Small images and tars for the tests of inputs."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable
from typing import Any

import numpy as np
from PIL import Image

from data_engine.images.decode import decode
from data_engine.images.settings import InputSettings
from data_engine.images.shard import EncodedImage, ImageError
from data_engine.images.sources import list_shards, read_shard


def picture(width: int = 24, height: int = 16, seed: int = 0) -> np.ndarray:
    """HxWx3 uint8, a different one for every seed."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def encode(image: np.ndarray | Image.Image, format: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    pil = image if isinstance(image, Image.Image) else Image.fromarray(image)
    pil.save(buffer, format, **options)
    return buffer.getvalue()


def png(seed: int = 0) -> bytes:
    return encode(picture(seed=seed))


def tried(data: bytes, settings: InputSettings) -> np.ndarray | ImageError:
    """The pixels, or why there are none. Any other exception is a failure of the test."""
    try:
        return decode(data, settings)
    except ImageError as error:
        return error


def tar(members: Iterable[tuple[str, bytes]], mode: str = "w", format: int = tarfile.PAX_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode, format=format, encoding="utf-8", errors="surrogateescape") as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def read_all(uri: object, settings: InputSettings | None = None) -> list[EncodedImage]:
    """Every image of every shard of an input, in order."""
    settings = settings or InputSettings()
    return [image for shard in list_shards(str(uri), settings).shards for image in read_shard(shard, settings)]


def outcome(images: Iterable[EncodedImage]) -> dict[str, bytes | str | None]:
    """id -> bytes, or the type of the error."""
    return {image.image_id: image.error.type if image.error else image.data for image in images}
