"""A training's folder, and the store that it is copied to while the training goes on.

The training works in the folder as in any other. After each state, a thread of its own copies what has changed. The
state goes last, as it was when the copying began: whatever moment a kill finds, the store has a whole state and the
logs up to it. An object of a store appears whole or not at all.
"""

from __future__ import annotations

import errno
import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO

from data_engine.dataset.export.destination import put_stream
from data_engine.errors import StorageError
from data_engine.retry import ONCE, PATIENT, passes, retried
from data_engine.stop_signals import Stopped, StopSignals
from data_engine.storage import filesystem, join, list_names, redact, translated
from data_engine.train.supervised.card import CARD, README, WEIGHTS
from data_engine.train.supervised.state_file import FILE as STATE
from data_engine.train.supervised.store_lock import LockLost, StoreLock

logger = logging.getLogger(__name__)

_SAY_SO_AFTER_S = 10.0
_AT_THE_END_S = 3600.0  # for a store that is away when the training is through
_AFTER_CTRL_C_S = 10.0
_NOT_COPIED = ("embeddings", "ray")  # of this machine
_AT_LAST = (STATE, WEIGHTS, README, CARD)  # in this order: a card says that the rest is there
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def fetch(url: str, folder: Path, names: tuple[str, ...]) -> None:
    """Copies those of the named files that the store has. Raises StorageError."""
    there = set(list_names(url))
    for name in names:
        if name in there:
            _fetch_file(join(url, name), folder / name)


def _fetch_file(uri: str, target: Path) -> None:
    def once() -> None:
        fs, path = filesystem(uri)
        with translated(uri):
            size = fs.info(path)["size"]
            try:
                fs.get_file(path, str(target))
            except OSError as error:
                if error.errno in _FULL:
                    raise StorageError(
                        f"{redact(uri)} has no room in {target.parent} ({error.strerror}): free some space there, or "
                        "set TMPDIR to a folder that has more"
                    ) from None
                raise
            if target.stat().st_size != size:
                raise ConnectionError(f"{target.stat().st_size:,} bytes came instead of {size:,}")

    try:
        retried(once, PATIENT)
    except FileNotFoundError:
        raise StorageError(f"{redact(uri)}: it was there and is gone; does something else write there?") from None


class StoreMirror:
    """`with StoreMirror(...) as mirror: ...`, and `mirror.finish(stop)` at the end. `lock` is that of the output."""

    def __init__(self, url: str, folder: Path, lock: StoreLock) -> None:
        self._url = url
        self._folder = folder
        self._lock = lock
        self._copied: dict[Path, tuple[int, int, int]] = {}
        self._wanted, self._ending = threading.Event(), threading.Event()
        self._failure: BaseException | None = None
        self._tries = 0  # since the store took something
        self._away_since: float | None = None
        self._said = False
        self._thread = threading.Thread(target=self._work, name="store-mirror", daemon=True)

    def __enter__(self) -> StoreMirror:
        for path in self._files():  # they came from there
            self._copied[path] = _signature(path.stat())
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """What there is of a training that failed or was stopped is copied as far as the store takes it at once."""
        if kind is None:
            return
        at_once = issubclass(kind, KeyboardInterrupt) and not issubclass(kind, Stopped)
        self._end(_AFTER_CTRL_C_S if at_once else None)
        if issubclass(kind, (Exception, Stopped)) and self._failure is None and not self._tries:
            try:
                self._copy()
            except StorageError as error:
                logger.warning("%s", error)

    def saved(self) -> None:
        """Has what changed copied, and does not wait for it. Raises what ended the copying, as LockLost."""
        if self._failure is not None:
            raise self._failure
        self._wanted.set()

    def finish(self, stop: StopSignals) -> None:
        """Copies the rest, and waits for a store that is away. Raises StorageError when it has waited long enough, and
        KeyboardInterrupt where it is asked to end while it waits."""
        self._end(None)
        until = time.monotonic() + _AT_THE_END_S
        while self._failure is None:
            try:
                self._copy()
                return
            except StorageError as error:
                if isinstance(error, LockLost) or not passes(error.__cause__) or time.monotonic() > until:
                    self._failure = error
                else:
                    pause = self._pause_after(error, "the training is done, and waits for it")
                    with stop.at_once():
                        time.sleep(pause)
        raise self._failure

    def _end(self, timeout: float | None) -> None:
        self._ending.set()
        self._wanted.set()
        self._thread.join(timeout)

    def _work(self) -> None:
        while self._wanted.wait() and not self._ending.is_set():
            self._wanted.clear()
            try:
                self._copy()
            except StorageError as error:
                if isinstance(error, LockLost):
                    self._failure = error
                    return
                self._wanted.set()
                self._ending.wait(self._pause_after(error, "the training goes on meanwhile"))
            except BaseException as error:
                self._failure = error
                return

    def _copy(self) -> None:
        """One pass over what has changed. Raises StorageError."""
        with ExitStack() as opened:
            # A state is replaced as a whole, so an open one stays what it is; the logs, read later, go as far at least.
            last = {name: opened.enter_context(file) for name in _AT_LAST if (file := self._opened(name)) is not None}
            self._lock.insist()
            for path in self._files():
                if path.parent != self._folder or path.name not in _AT_LAST:
                    with path.open("rb") as file:
                        self._put(path, file)
            for name, file in last.items():
                self._lock.insist()  # what was before it may have taken a while
                self._put(self._folder / name, file)

    def _opened(self, name: str) -> IO[bytes] | None:
        try:
            return (self._folder / name).open("rb")
        except FileNotFoundError:
            return None

    def _put(self, path: Path, file: IO[bytes]) -> None:
        signature = _signature(os.fstat(file.fileno()))
        if self._copied.get(path) == signature:
            return
        put_stream(join(self._url, path.relative_to(self._folder).as_posix()), file, ONCE)
        self._copied[path] = signature
        self._tries = 0
        if self._away_since is not None:
            if self._said:
                away = time.monotonic() - self._away_since
                logger.warning("%s: the store answers again, after %.0f s", redact(self._url), away)
            self._away_since, self._said = None, False

    def _pause_after(self, error: StorageError, meanwhile: str) -> float:
        """Seconds to wait until the next try. Says once that the store is away."""
        self._tries += 1
        now = time.monotonic()
        self._away_since = now if self._away_since is None else self._away_since
        if now - self._away_since >= _SAY_SO_AFTER_S and not self._said:
            self._said = True
            logger.warning("%s; it is tried again, and %s", error, meanwhile)
        return PATIENT.pause(self._tries)

    def _files(self) -> Iterator[Path]:
        for path in sorted(self._folder.rglob("*")):
            parts = path.relative_to(self._folder).parts
            if parts[0] not in _NOT_COPIED and not parts[-1].startswith(".") and path.is_file():
                yield path


def _signature(about: os.stat_result) -> tuple[int, int, int]:
    return about.st_ino, about.st_size, about.st_mtime_ns
