"""Where the images of a slice begin in a tar, so that one of them can be read alone."""

from __future__ import annotations

import tarfile
from threading import Lock

from data_engine.images.settings import InputSettings
from data_engine.images.shard import Shard
from data_engine.images.stream import InputFile
from data_engine.images.webdataset import normalised


class TarSlice:
    """Offsets of the images from `offset` on, found header by header, as far as was asked for; no data is read."""

    def __init__(self, shard: Shard, settings: InputSettings, offset: int) -> None:
        self._shard = shard
        self._settings = settings
        self._go_on_at = offset
        self._offsets: list[int] = []
        self._lock = Lock()

    def offset(self, row: int) -> int | None:
        """Where the header of the slice's image number `row` begins; None where the tar ends before, or is damaged.

        Raises StorageError and FileNotFoundError.
        """
        with self._lock:
            if row >= len(self._offsets):
                self._walk(row)
            return self._offsets[row] if row < len(self._offsets) else None

    def _walk(self, row: int) -> None:
        with InputFile(self._shard.location, self._settings) as file:
            file.seek(self._go_on_at)
            try:
                with tarfile.open(fileobj=file, mode="r:") as tar:
                    while row >= len(self._offsets) and (member := tar.next()) is not None:
                        if member.isreg() and self._settings.is_image(normalised(member.name)):
                            self._offsets.append(member.offset)
                        self._go_on_at = tar.offset
            except tarfile.TarError:
                return


def is_zipped(shard: Shard, settings: InputSettings) -> bool:
    """Whether a tar is gzipped, and so cannot be entered in its middle."""
    with InputFile(shard.location, settings) as file:
        return file.read(2) == b"\x1f\x8b"
