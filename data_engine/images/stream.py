"""Large objects read in passing: a file object that survives transient errors and is nowhere held whole."""

from __future__ import annotations

import io
from collections.abc import Mapping
from functools import partial
from typing import Any

from data_engine.errors import StorageError
from data_engine.images.fetch import version
from data_engine.images.hosts import input_filesystem
from data_engine.images.retry import with_retries
from data_engine.images.settings import InputSettings
from data_engine.storage import redact, scheme_of

_BLOCK = 8 << 20  # bytes of one request to a store


class InputFile(io.RawIOBase):
    """One object of an input, for sequential reading with leaps. After an error that passes it goes on where it was.

    Seeking is free until the next read. Raises FileNotFoundError and StorageError.
    """

    def __init__(self, uri: str, settings: InputSettings) -> None:
        super().__init__()
        self._uri = uri
        self._scheme = scheme_of(uri)
        self._fs, self._path = input_filesystem(uri, settings)
        self._file: Any = None
        self._file_position = 0
        self._position = 0
        info = with_retries(uri, lambda: self._fs.info(self._path))
        self.size: int | None = info.get("size")
        """Bytes, where the server says."""
        self.version: str | None = version(info)

    def read(self, size: int | None = -1) -> bytes:
        """Exactly `size` bytes, fewer only at the end of the object."""
        if size is None or size < 0:
            if self.size is None:
                raise StorageError(f"{redact(self._uri)}: the server does not say how long it is")
            size = max(0, self.size - self._position)
        pieces = []
        while size > 0:
            piece = with_retries(self._uri, partial(self._read_some, min(size, _BLOCK)))
            if not piece:
                break
            pieces.append(piece)
            size -= len(piece)
            self._position += len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def readinto(self, buffer: Any) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = 0) -> int:
        if whence == io.SEEK_CUR:
            offset += self._position
        elif whence == io.SEEK_END:
            if self.size is None:
                raise StorageError(f"{redact(self._uri)}: the server does not say how long it is")
            offset += self.size
        self._position = max(0, offset)
        return self._position

    def tell(self) -> int:
        return self._position

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def close(self) -> None:
        self._drop()
        super().close()

    def _read_some(self, size: int) -> bytes:
        try:
            self._go_to_position()
            data: bytes = self._file.read(size)
        except BaseException:
            self._drop()  # what state it is in nobody knows
            raise
        self._file_position += len(data)
        if not data and self.size is not None and self._position < self.size and self._scheme != "file":
            self._drop()
            raise ConnectionError(f"the answer ends at byte {self._position:,} of {self.size:,}")
        return data

    def _go_to_position(self) -> None:
        if self._file is not None and self._file_position == self._position:
            return
        if self._scheme in ("http", "https"):
            ahead = self._position - self._file_position
            if self._file is None or not 0 <= ahead <= _BLOCK:
                self._drop()
                self._file, self._file_position = self._open_response(), 0
                self._refuse_another_version(self._file.r.headers)
                if self._file.r.status == 206:
                    self._file_position = self._position
            while self._file_position < self._position:
                passed = self._file.read(min(_BLOCK, self._position - self._file_position))
                if not passed:
                    raise ConnectionError(f"the answer ends at byte {self._file_position:,}")
                self._file_position += len(passed)
            return
        if self._file is None:
            if self._scheme == "memory":  # its file objects share one position
                self._file = io.BytesIO(self._fs.cat_file(self._path))
            else:
                self._file = self._fs.open(self._path, "rb", block_size=_BLOCK, cache_type="readahead")
                self._refuse_another_version(getattr(self._file, "details", {}))
        self._file.seek(self._position)
        self._file_position = self._position

    def _refuse_another_version(self, info: Mapping[str, Any]) -> None:
        """What was opened again must be what was opened first, or two versions would be mixed."""
        found = version(info)
        if self.version is not None and found is not None and found != self.version:
            raise StorageError(f"{redact(self._uri)} changed while it was read")

    def _open_response(self) -> Any:
        """One request for all of the rest: its body is read as it is needed."""
        headers = {"Accept-Encoding": "identity"}
        if self._position:
            headers["Range"] = f"bytes={self._position}-"
        return self._fs.open(self._path, "rb", block_size=0, size=1, headers=headers)

    def _drop(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
