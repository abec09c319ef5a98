"""The files of a dataset in a store, as Arrow and DuckDB read them: by the ranges that they ask for.

Their sizes are known from the commits, so that none is asked for, again and again, before a file is read. Failures that
pass are waited out.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable
from datetime import datetime, timezone
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from fsspec import AbstractFileSystem
from fsspec.spec import AbstractBufferedFile

from data_engine.dataset.commits import Part
from data_engine.storage import filesystem, is_local, join, local_path, read_range, scheme_of

# Columns that are read lie apart from each other, with the run lengths in between: to read on for long, as s3fs does by
# default, is to read the whole file.
_READ_ON = 1 << 14
_ALWAYS = datetime(2000, 1, 1, tzinfo=timezone.utc)


def open_committed(root: str, part: Part) -> pq.ParquetFile:
    """A committed file. Raises FileNotFoundError, StorageError and errors of Arrow, some of them when it is read."""
    file = CommittedFile(root, part) if not is_local(root) else pa.OSFile(str(local_path(join(root, part.file))))
    return pq.ParquetFile(file, page_checksum_verification=True, pre_buffer=True)  # a request a row group


class CommittedFile(AbstractBufferedFile):
    """A committed file below `root`. Raises FileNotFoundError and StorageError when it is read, not before."""

    def __init__(self, root: str, part: Part) -> None:
        self._uri = join(root, part.file)
        store, path = filesystem(self._uri)
        super().__init__(store, path, size=part.size, block_size=_READ_ON, cache_type="readahead")

    def _fetch_range(self, start: int, end: int) -> bytes:
        try:
            return read_range(self._uri, start, end)
        except FileNotFoundError:
            raise FileNotFoundError(errno.ENOENT, "no such file", self._uri) from None


class CommittedFiles(AbstractFileSystem):
    """The committed files below `root`, and what else the store has: read only."""

    cachable = False  # or fsspec would give the files of another moment

    def __init__(self, root: str) -> None:
        super().__init__()
        self._store, _ = filesystem(root)
        self.protocol = scheme_of(root)  # that of the URIs, whatever else the store answers to
        self._root = root
        self._parts: dict[str, Part] = {}  # by path

    @classmethod
    def of(cls, root: str, parts: Iterable[Part]) -> CommittedFiles:
        files = cls(root)  # without them: fsspec makes a digest of what a file system is made with
        files._parts = {files._strip_protocol(join(root, part.file)): part for part in parts}
        return files

    def _strip_protocol(self, path: Any) -> Any:
        return self._store._strip_protocol(path)

    def _part(self, path: str) -> Part | None:
        return self._parts.get(self._strip_protocol(path))

    def info(self, path: str, **options: Any) -> dict[str, Any]:
        part = self._part(path)
        if part is None:
            return self._store.info(path, **options)
        return {"name": self._strip_protocol(path), "size": part.size, "type": "file"}

    def ls(self, path: str, detail: bool = True, **options: Any) -> Any:
        return self._store.ls(path, detail=detail, **options)

    def glob(self, path: str, **options: Any) -> Any:
        return self._store.glob(path, **options) if self._part(path) is None else [path.split("://", 1)[-1]]

    def modified(self, path: str) -> datetime:
        """The same whenever it is asked for: committed files do not change, and what was read of one holds."""
        return self._store.modified(path) if self._part(path) is None else _ALWAYS

    def _open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        part = self._part(path)
        if part is None or mode != "rb":
            return self._store.open(path, mode, **options)
        return CommittedFile(self._root, part)
