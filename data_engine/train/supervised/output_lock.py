"""One writer a folder: trainings and loops overwrite what they left, so two of them in one output would mix."""

from __future__ import annotations

import errno
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from data_engine.errors import StorageError

logger = logging.getLogger(__name__)

LOCK = ".lock"
_NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK)  # some network and FUSE mounts


@contextmanager
def only_writer(folder: Path) -> Iterator[bool]:
    """Holds the lock of a folder, which belongs to the process: it is free as soon as its holder is dead.

    Yields False where the file system has no locks: that is logged, and two writers are not kept apart there.
    Raises StorageError where another process has the lock, and for a folder that cannot be written.
    """
    lock = FileLock(folder / LOCK, fallback_to_soft=False)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise StorageError(
            f"{folder}: another process is at work in it; wait for its end, or choose another output"
        ) from None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise StorageError(f"{folder} cannot be written ({error.strerror}): choose another output") from None
        logger.warning(
            "%s is on a file system without locks (%s): see to it that no second command writes there",
            folder,
            error.strerror,
        )
    try:
        yield lock.is_locked
    finally:
        lock.release()
