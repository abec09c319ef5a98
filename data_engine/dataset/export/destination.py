"""Where an export goes: whole files put under their names, and one kind of error for whatever refuses them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

from data_engine.errors import StorageError
from data_engine.storage import filesystem, redact, translated

_BLOCK = 1 << 22


def put_bytes(uri: str, data: bytes) -> None:
    """Writes a file. Raises StorageError."""
    fs, path = filesystem(uri)
    with _writing(uri):
        fs.makedirs(path.rsplit("/", 1)[0], exist_ok=True)
        fs.pipe_file(path, data)


def put_stream(uri: str, source: IO[bytes]) -> None:
    """Writes a file from what `source` has from its position on. Raises StorageError."""
    fs, path = filesystem(uri)
    with _writing(uri):
        fs.makedirs(path.rsplit("/", 1)[0], exist_ok=True)
        with fs.open(path, "wb") as target:
            while block := source.read(_BLOCK):
                target.write(block)


@contextmanager
def _writing(uri: str) -> Iterator[None]:
    try:
        with translated(uri):
            yield
    except (FileNotFoundError, FileExistsError) as error:
        text = error.strerror or redact(str(error)) or type(error).__name__
        raise StorageError(f"{redact(uri)}: cannot be written ({text}); choose another destination") from error
