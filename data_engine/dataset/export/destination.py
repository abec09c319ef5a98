"""Where an export goes: whole files put under their names, and one kind of error for whatever refuses them.

A file is there completely or not at all: on a local disk it is renamed into place, on an object store an upload counts
when it is complete.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from data_engine.errors import StorageError
from data_engine.retry import ONCE, PATIENT, Patience, retried
from data_engine.storage import filesystem, is_local, local_path, redact, translated

_BLOCK = 1 << 22
_SINGLE_PUT = 64 << 20  # larger files are uploaded in parts


def put_bytes(uri: str, data: bytes) -> None:
    """Writes a file. Raises StorageError."""

    def write() -> None:
        with _writing(uri):
            if is_local(uri):
                with _renamed_into_place(local_path(uri)) as target:
                    target.write(data)
            else:
                fs, path = filesystem(uri)
                fs.pipe_file(path, data)

    retried(write, ONCE if is_local(uri) else PATIENT)


def put_stream(uri: str, source: IO[bytes], patience: Patience = PATIENT) -> None:
    """Writes a file from what `source`, which can seek, has from its position on. Raises StorageError."""
    start = source.tell()

    def write() -> None:
        source.seek(start)
        with _writing(uri):
            if is_local(uri):
                with _renamed_into_place(local_path(uri)) as target:
                    shutil.copyfileobj(source, target, _BLOCK)
                return
            fs, path = filesystem(uri)
            first = source.read(_SINGLE_PUT)
            if len(first) < _SINGLE_PUT:
                fs.pipe_file(path, first)
            else:
                with _uploaded(fs, path) as target:
                    target.write(first)
                    shutil.copyfileobj(source, target, _BLOCK)

    retried(write, ONCE if is_local(uri) else patience)


@contextmanager
def in_the_making(what: str) -> Iterator[IO[bytes]]:
    """A temporary file to build a large file in. Raises StorageError, naming `what`, when there is no room for it."""
    with room_for(what):
        file = tempfile.TemporaryFile()  # noqa: SIM115 - closed below, where a full disk may refuse that too
    try:
        yield file
    finally:
        with suppress(OSError):
            file.close()


@contextmanager
def room_for(what: str) -> Iterator[None]:
    """Around writes to a file in the making."""
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"{what} in the making, in the folder for temporary files: {error.strerror or error}; "
            "free some space there, or set TMPDIR to a folder that has more"
        ) from error


@contextmanager
def _renamed_into_place(path: Path) -> Iterator[IO[bytes]]:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name[:80]}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())  # its content survives a power cut before its name does
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def _uploaded(fs: Any, path: str) -> Iterator[IO[bytes]]:
    """A file that exists once the block has ended well. Leaving `fs.open` by an error would complete the upload."""
    file = fs.open(path, "wb")
    try:
        yield file
    except BaseException:
        with suppress(Exception):
            file.discard()  # the parts so far
        with suppress(AttributeError):
            file.closed = True  # or its destructor would complete it
        raise
    file.close()


@contextmanager
def _writing(uri: str) -> Iterator[None]:
    try:
        with translated(uri):
            yield
    except (FileNotFoundError, FileExistsError) as error:
        text = error.strerror or redact(str(error)) or type(error).__name__
        raise StorageError(f"{redact(uri)}: cannot be written ({text}); choose another destination") from error
