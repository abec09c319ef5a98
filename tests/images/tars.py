"""Tars for the tests, also such as no library would write, and what comes out of them."""

from __future__ import annotations

import tarfile
from pathlib import Path

from data_engine.images.settings import InputSettings
from data_engine.images.shard import EncodedImage, Shard, ShardDamaged
from data_engine.images.sources import list_shards, read_shard

SETTINGS = InputSettings()
FORMATS = [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]
THREE = [("0.jpg", b"a" * 700), ("1.json", b"{}"), ("1.jpg", b"b" * 512), ("2.jpg", b"c" * 10)]


def write(folder: Path, data: bytes, name: str = "a.tar") -> Shard:
    (folder / name).write_bytes(data)
    (shard,) = list_shards(str(folder / name), SETTINGS).shards
    return shard


def read(
    shard: Shard, settings: InputSettings = SETTINGS, **how: object
) -> tuple[list[EncodedImage], ShardDamaged | None]:
    """Everything that comes out, and the damage that ends it."""
    images = []
    try:
        for image in read_shard(shard, settings, **how):
            images.append(image)
    except ShardDamaged as damage:
        return images, damage
    return images, None


def names_and_data(images: list[EncodedImage]) -> list[tuple[str, bytes | str | None]]:
    return [(image.image_id, image.error.type if image.error else image.data) for image in images]


def special(name: str, type: bytes, linkname: str = "", size: int = 0) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = type, linkname, size
    return info


def header(name: bytes, size: bytes, type: bytes = b"0", rest: bytes = b"") -> bytes:
    """A header block with a right checksum, whatever else is wrong with it."""
    block = bytearray(512)
    block[: len(name)] = name
    block[124 : 124 + len(size)] = size
    block[156:157] = type
    block[257:263] = b"ustar\0"
    block[345 : 345 + len(rest)] = rest
    block[148:156] = b"        "
    block[148:155] = b"%06o\0" % sum(block)
    return bytes(block)


def assert_resumable(shard: Shard, offsets: bool = True) -> None:
    whole, damage = read(shard)
    assert damage is None
    for start in range(len(whole) + 1):
        assert read(shard, start=start)[0] == whole[start:]
        if start:
            before = whole[start - 1]
            assert (before.next_offset is not None) == offsets
            seen = {image.image_id for image in whole[:start]}
            assert read(shard, start=start, offset=before.next_offset, seen_ids=seen)[0] == whole[start:]
