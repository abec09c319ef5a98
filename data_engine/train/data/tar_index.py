"""Where the members of a tar lie, so that single ones can be read. Headers are read once, data are leapt over."""

from __future__ import annotations

from dataclasses import dataclass

from data_engine.images.settings import InputSettings
from data_engine.images.shard import Shard, ShardDamaged
from data_engine.images.stream import InputFile
from data_engine.images.webdataset import TarStream, normalised
from data_engine.storage import redact


@dataclass(frozen=True, slots=True)
class Member:
    """A file in a tar: `size` bytes from `start` on."""

    image_id: str  # the tar's name and its own, as ids of `data-engine generate` are
    start: int
    size: int


def index_tar(uri: str, name: str, settings: InputSettings) -> tuple[list[Member], str | None]:
    """(members that are whole, what is damaged after them or None). Raises FileNotFoundError and StorageError."""
    members: list[Member] = []
    with InputFile(uri, settings) as file:
        tar = TarStream(Shard(id="", kind="tar", uri=redact(uri)), file, file.size)
        try:
            for member in tar.members():
                if not member.sparse:
                    members.append(Member(f"{name}/{normalised(member.name)}", member.start, member.size))
        except ShardDamaged as error:
            return members, str(error)
    return members, None
