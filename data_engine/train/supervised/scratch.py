"""A folder on this machine's disk for a training whose output lies in a store; gone when the training is."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from data_engine.errors import StorageError
from data_engine.train.supervised.output_lock import LOCK, only_writer

_PREFIX, _KEPT = "data-engine-train-", "data-engine-not-stored-"
_JUST_MADE_S = 60.0


class Scratch:
    """`folder` is empty at first, and this process's alone."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self.folder = root / "run"

    def keep(self) -> Path:
        """Where what is in the folder stays after the end."""
        kept = self._root.with_name(self._root.name.replace(_PREFIX, _KEPT))
        self._root.rename(kept)
        return kept / self.folder.name


@contextmanager
def scratch_folder() -> Iterator[Scratch]:
    """In the folder for temporary files (TMPDIR). Removes those of trainings that were killed on this machine, too.

    Raises StorageError where none can be made.
    """
    try:
        _remove_dead()
        root = Path(tempfile.mkdtemp(prefix=_PREFIX))
        (root / "run").mkdir()
    except OSError as error:
        raise StorageError(
            f"{tempfile.gettempdir()} cannot be written ({error.strerror}): set TMPDIR to a folder with room for the "
            "model and three states of its training"
        ) from None
    try:
        with only_writer(root):
            yield Scratch(root)
    finally:
        shutil.rmtree(root, ignore_errors=True)


def _remove_dead() -> None:
    """A lock that can be had says that its process is dead."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with suppress(OSError, StorageError):
            about, lock = folder.lstat(), folder / LOCK
            ours = stat.S_ISDIR(about.st_mode) and about.st_uid == os.getuid()
            if not ours or time.time() - about.st_mtime < _JUST_MADE_S or not lock.exists():
                continue
            with only_writer(folder) as dead:
                if dead:
                    shutil.rmtree(folder, ignore_errors=True)
