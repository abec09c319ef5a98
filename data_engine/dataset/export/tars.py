"""Tars written member by member, so that the same images make the same bytes."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

from data_engine.dataset.export.destination import in_the_making, room_for
from data_engine.dataset.export.format import PieceTarget


class Tar:
    """A tar in the making, in a temporary file."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.members = 0

    def add(self, name: str, data: bytes) -> None:
        """Appends a file. No time, owner or rights: they are the same in every run."""
        member = tarfile.TarInfo(name)
        member.size = len(data)
        with room_for("a tar"):
            self._file.write(member.tobuf(tarfile.USTAR_FORMAT))
            self._file.write(data)
            self._file.write(bytes(-len(data) % tarfile.BLOCKSIZE))
        self.members += 1

    def finish(self) -> IO[bytes]:
        """The whole tar, to be read from its beginning."""
        with room_for("a tar"):
            self._file.write(bytes(-(self._file.tell() + 1024) % tarfile.RECORDSIZE + 1024))  # the end marker
            self._file.seek(0)
        return self._file


@contextmanager
def tar_of_piece(target: PieceTarget, name: str) -> Iterator[Tar]:
    """A tar that is put under `name` when the block ends well and it has members."""
    with in_the_making("a tar") as file:
        tar = Tar(file)
        yield tar
        if tar.members:
            target.put_stream(name, tar.finish())
