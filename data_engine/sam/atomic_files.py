"""Files that appear whole or not at all, and replace nothing unless that is asked for.

A file that is there already with the same content is left as it is.
"""

from __future__ import annotations

import errno
import filecmp
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from data_engine.errors import StorageError, UsageError

Writer = Callable[[Path], None]
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EMLINK)  # FAT, some network mounts


def put_file(path: Path, write: Writer, *, overwrite: bool = False) -> None:
    """Has `write` fill a temporary file beside `path`, and gives it that name once it is on the disk.

    Raises UsageError where something else has the name, StorageError where the file system refuses.
    """
    temporary = _temporary_beside(path)
    try:
        with _explained(path):
            _make_folder(path.parent)
            write(temporary)
            _sync(temporary)
            _publish(temporary, path, overwrite)
            _sync(path.parent)
    finally:
        with suppress(OSError):  # there is none, or what was raised says more
            temporary.unlink()


def put_folder(folder: Path, writers: Mapping[str, Writer], *, overwrite: bool = False) -> None:
    """As `put_file` for the files of a folder, by name. A new folder appears with all of them at once.

    In a folder that is there, they appear one by one, in the order given; other files in it stay.
    """
    temporary = _temporary_beside(folder)
    try:
        with _explained(folder):
            _make_folder(folder.parent)
            temporary.mkdir()
            for name, write in writers.items():
                write(temporary / name)
                _sync(temporary / name)
            _sync(temporary)
            if not _become(temporary, folder):
                for name in writers if not overwrite else ():
                    _refuse_another(temporary / name, folder / name)
                for name in writers:
                    _publish(temporary / name, folder / name, overwrite)
                _sync(folder)
            _sync(folder.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise NotADirectoryError(errno.ENOTDIR, f"{folder} is a file") from None


def _temporary_beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")


def _become(temporary: Path, folder: Path) -> bool:
    """Renames a folder, unless the name is taken by one with something in it (or by a link to a folder)."""
    if folder.is_dir():
        return False
    try:
        temporary.rename(folder)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):  # another process was faster
            return False
        raise
    return True


def _publish(temporary: Path, path: Path, overwrite: bool) -> None:
    if overwrite:
        temporary.replace(path)
        return
    try:
        os.link(temporary, path)  # fails if the name is taken
    except FileExistsError:
        _refuse_another(temporary, path)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        _refuse_another(temporary, path)
        temporary.replace(path)


def _refuse_another(temporary: Path, path: Path) -> None:
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, "there is a folder of that name")
    if path.exists() and not filecmp.cmp(temporary, path, shallow=False):
        raise UsageError(f"{path} exists and holds something else: choose another destination, or --overwrite it")


def _sync(path: Path) -> None:
    """Makes a file's content, or a folder's names, survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        remedy = "choose another destination"
        if error.errno in _FULL:
            existing = next(parent for parent in path.parents if parent.is_dir())
            remedy = f"free some space ({shutil.disk_usage(existing).free:,} bytes are free there) or {remedy}"
        raise StorageError(f"{path} cannot be written ({error.strerror or error}): {remedy}") from error
