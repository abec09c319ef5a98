"""Writing to a dataset's store: whole objects, durable, and put-if-absent where it decides who wins.

What stores really do with a conditional write (measured, see docs/dataset-format.md) shapes this module: the commit is
one small non-empty object; "exists" arrives as FileExistsError or as an OSError; a winner can be told that it lost,
when its answer was dropped and the retry met its own object; 409 says "not now" and never "exists"; some stores ignore
the condition altogether.
"""

from __future__ import annotations

import errno
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from data_engine.errors import StorageError
from data_engine.retry import ONCE, PATIENT, Patience, response_of, retried
from data_engine.storage import filesystem, is_local, join, local_path, read_bytes, redact, translated

_PATIENCE_OF_DELETE = Patience(seconds=10.0)
_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}  # as file systems put it
_NO_FOLDER_SYNC = {errno.EINVAL, errno.EBADF, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}


def new_owner() -> str:
    """A token that no other process has."""
    return uuid.uuid4().hex


def put(uri: str, data: bytes, patience: Patience = PATIENT) -> None:
    """Writes a whole object under a name nobody else uses. It is there completely or not at all."""
    if is_local(uri):
        path = local_path(uri)
        with _local_errors(path), _temporary(path, data) as temporary:
            temporary.replace(path)
            _sync_folder(path.parent)
        return
    retried(lambda: _remote_put(uri, data, "overwrite"), patience)


def put_if_absent(uri: str, data: bytes, single_writer: bool = False, patience: Patience = PATIENT) -> bool:
    """Writes a whole object unless the name is taken. Returns whether the object there is this one.

    `data` must be unique to its writer (carry an owner token): when the store says "exists", the object is read back
    and compared, because the answer to our own write may have been lost.
    """
    assert data, "an empty object is not written conditionally by some stores"
    if is_local(uri):
        return _local_put_if_absent(local_path(uri), data) or read_bytes(uri) == data
    return retried(lambda: _remote_put_if_absent(uri, data, single_writer), patience)


def delete(uri: str) -> None:
    """Removes an object of ours that lost its race. Failing to is harmless: nothing refers to it."""
    with suppress(Exception):
        retried(lambda: _remove(uri), _PATIENCE_OF_DELETE)


def check_store(root: str, single_writer: bool = False, patience: Patience = PATIENT) -> None:
    """Proves that `root` can be written, and that it honours put-if-absent. Raises StorageError with the remedy."""
    probe = join(root, "_plan", f"probe-{uuid.uuid4().hex}")
    try:
        first = put_if_absent(probe, b"first", single_writer, patience)
        second = put_if_absent(probe, b"second", single_writer, patience)
        kept = read_bytes(probe, patience)
    finally:
        delete(probe)
    if not first or second or kept != b"first":
        raise StorageError(
            f"{root}: this store ignores conditional writes (put-if-absent), so two writers could overwrite each other."
            " Use another store, or set run.single_writer=true and make sure that only one process writes at a time"
        )


def _remote_put_if_absent(uri: str, data: bytes, single_writer: bool) -> bool:
    """One try. Returns whether the object there is this one."""
    if single_writer:
        written = not _exists(uri) and _remote_put(uri, data, "overwrite")
    else:
        written = _remote_put(uri, data, "create")
    if written:
        return True
    try:
        return read_bytes(uri, ONCE) == data
    except FileNotFoundError:  # removed in between, or a store that has not settled
        raise StorageError(f"{redact(uri)}: taken, and then not there") from ConnectionError("not settled")


def _remote_put(uri: str, data: bytes, mode: str) -> bool:
    """One PUT. Returns False when the name is taken."""
    fs, path = filesystem(uri)
    with translated(uri):
        try:
            fs.pipe_file(path, data, mode=mode)
        except FileExistsError:
            return False
        except FileNotFoundError as error:
            raise StorageError(f"{redact(uri)}: no such bucket; create it, or choose another output") from error
        except OSError as error:
            if mode == "create" and _says_exists(error):
                return False
            raise
    return True


def _says_exists(error: OSError) -> bool:
    """A failed precondition comes as EINVAL from some S3 stores (Ceph RGW), with the code in the answer or the text."""
    code, status = response_of(error)
    if code is not None or status is not None:
        return code == "PreconditionFailed" or status == 412
    text = str(error)
    return error.errno in (errno.EEXIST, errno.EINVAL) and ("PreconditionFailed" in text or "412" in text)


def _exists(uri: str) -> bool:
    fs, path = filesystem(uri)
    with translated(uri):
        return fs.exists(path)


def _remove(uri: str) -> None:
    fs, path = filesystem(uri)
    with translated(uri):
        fs.rm_file(path)


def _local_put_if_absent(path: Path, data: bytes) -> bool:
    with _local_errors(path), _temporary(path, data) as temporary:
        try:
            os.link(temporary, path)  # fails if the name is taken; the content is there from the first moment
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            return _exclusive_create(path, data)
        _sync_folder(path.parent)
    return True


def _exclusive_create(path: Path, data: bytes) -> bool:
    """For file systems without hard links (FAT, some network mounts). Exclusive; a crash can leave it unfinished."""
    try:
        file = open(path, "xb")  # noqa: SIM115 - closed below
    except FileExistsError:
        return False
    try:
        with file:
            file.write(data)
            os.fsync(file.fileno())
    except BaseException:
        path.unlink(missing_ok=True)  # half a record would stand for good
        raise
    return True


@contextmanager
def _temporary(path: Path, data: bytes) -> Iterator[Path]:
    """A synced file with `data` beside `path`, removed at the end if it is still there."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise NotADirectoryError(errno.ENOTDIR, "its folder is a file") from None
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def _local_errors(path: Path) -> Iterator[None]:
    """Says in one line what a local file system refused, and what to do."""
    try:
        yield
    except FileExistsError:
        raise
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            free = free_bytes(path)
            raise StorageError(
                f"{path}: no space left on the device ({free:,} bytes free); free some and run the same command again"
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise StorageError(f"{path}: cannot be written ({error.strerror}); choose another output") from error
        raise StorageError(f"{path}: {error.strerror or error}") from error


def free_bytes(path: Path) -> int:
    """On the disk that a path is on, or would be."""
    while not path.exists():
        path = path.parent
    stats = os.statvfs(path)
    return stats.f_bavail * stats.f_frsize


def _sync_folder(folder: Path) -> None:
    """Makes the new name itself survive a power cut, where the file system can (some network mounts cannot)."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_FOLDER_SYNC:
            raise
    finally:
        os.close(descriptor)
