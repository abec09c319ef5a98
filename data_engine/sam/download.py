"""Fetching a large file once: resumable, verified, atomic, by one process of a machine while the others wait."""

from __future__ import annotations

import errno
import http.client
import logging
import os
import random
import shutil
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Protocol

from filelock import FileLock, Timeout

from data_engine.errors import CheckpointError, StorageError
from data_engine.retry import response_of
from data_engine.sam.digests import note_sha256, sha256_of
from data_engine.storage import redact

log = logging.getLogger(__name__)

_BLOCK = 1 << 20
_ATTEMPTS = 5  # a quarter of a minute: no network is soon said
_ATTEMPTS_WHEN_BUSY = 10  # four minutes: a hub that a whole cluster asks at once turns some away for a while
_BUSY = (429, 503)
_LONGEST_PAUSE_S = 60.0
_TIMEOUT_S = 30.0
_REMEDIES = {401: "it needs a login", 403: "access is denied, or the link has expired", 404: "check the address"}


class Source(Protocol):
    """A file to fetch."""

    @property
    def url(self) -> str: ...

    @property
    def size(self) -> int | None:
        """In bytes, where it is known."""
        ...

    def open(self, start: int) -> AbstractContextManager[tuple[int, Iterator[bytes]]]:
        """The content from byte `start` on, or from an earlier one: (the first byte there is, blocks).

        Raises CheckpointError for what is final, and OSError, HTTPException or StorageError for what may pass.
        """
        ...


class NothingThere(OSError):
    """The source has nothing at the byte asked for: what arrived before is not the beginning of this file."""


class Replaced(CheckpointError):
    """The source is not the one it was: what has arrived of it belongs to nothing."""


@dataclass(frozen=True, slots=True)
class HttpSource:
    """A file on a web server. `validator` is the ETag or date that every answer must carry to be of the same file."""

    url: str
    size: int | None
    validator: str | None = None
    resumable: bool = True

    @contextmanager
    def open(self, start: int) -> Iterator[tuple[int, Iterator[bytes]]]:
        start = start if self.resumable else 0
        headers = {"Range": f"bytes={start}-"} if start else {}
        try:
            with urllib.request.urlopen(urllib.request.Request(self.url, headers=headers), timeout=_TIMEOUT_S) as body:
                if self.validator not in (None, body.headers["ETag"], body.headers["Last-Modified"]):
                    raise Replaced(f"cannot fetch {redact(self.url)}: it was replaced while it was fetched; run again")
                yield start if body.status == 206 else 0, iter(lambda: body.read(_BLOCK), b"")
        except urllib.error.HTTPError as error:
            if error.code == 416:
                raise NothingThere(str(error)) from None
            raise_if_final(self.url, error)
            raise


def raise_if_final(url: str, error: urllib.error.HTTPError) -> None:
    """Raises CheckpointError for a web server's answer that will be the same next time."""
    if error.code < 500 and error.code not in (408, 416, 429):
        remedy = f": {_REMEDIES[error.code]}" if error.code in _REMEDIES else ""
        raise CheckpointError(
            f"cannot fetch {redact(url)}: the server answered {error.code} {error.reason}{remedy}"
        ) from None


def download(url: str, path: Path, *, sha256: str, size: int, backoff_s: float = 1.0) -> None:
    """Fetches `url` (http or https) to `path`, which appears only when whole and verified. See `fetch`."""
    fetch(HttpSource(url, size), path, sha256=sha256, backoff_s=backoff_s)


def fetch(source: Source, path: Path, *, sha256: str | None, backoff_s: float = 1.0) -> None:
    """Fetches a file to `path`, which appears only when it has the promised size and, where known, sha256.

    An interrupted transfer leaves `<path>.partial`; the next call, also of another process, goes on from there.
    Raises CheckpointError when the source cannot be reached or the content is not what was promised.
    """
    url = redact(source.url)
    partial = path.with_name(path.name + ".partial")
    with exclusively(path, url):
        if path.exists():  # another process was faster
            return
        _fetch_with_retries(source, partial, path, sha256, backoff_s)
        found = sha256_of(partial)
        if sha256 is not None and found != sha256:
            partial.unlink()
            raise CheckpointError(
                f"{url} is not what it should be: sha256 {found}, expected {sha256}. The file was deleted; "
                "a proxy may have changed it, or the release did"
            )
        past = time.time() - 60  # whatever changes the file later gives it another time, so the digest can be noted
        os.utime(partial, (past, past))
        partial.replace(path)
        note_sha256(path, found)


@contextmanager
def exclusively(path: Path, url: str, notice_s: float = 60.0) -> Iterator[None]:
    """Holds the lock `<path>.lock`, which belongs to the process: it is free as soon as its holder is dead."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path.with_name(path.name + ".lock"), poll_interval=0.2, fallback_to_soft=False)
        wait = 0.0
        while not lock.is_locked:
            try:
                lock.acquire(timeout=wait)
            except Timeout:
                log.warning("waiting for another process, which is fetching %s to %s", url, path)
                wait = notice_s
    except OSError as error:
        raise CheckpointError(
            f"cannot fetch {url}: no lock can be had in {path.parent} ({error.strerror or error}); "
            "set DATA_ENGINE_CACHE to a folder on a disk of this machine that can be written"
        ) from None
    try:
        yield
    finally:
        lock.release()


def pause_after(attempt: int, error: BaseException, backoff_s: float) -> float | None:
    """Seconds to wait after the `attempt`th failure, from 1; None after the last. More where a server is busy."""
    busy = any(code in _BUSY for code in (getattr(error, "code", None), response_of(error)[1]))
    if attempt >= (_ATTEMPTS_WHEN_BUSY if busy else _ATTEMPTS):
        return None
    # Spread, so that a cluster's nodes do not come back all at once.
    return min(_LONGEST_PAUSE_S, backoff_s * 2 ** (attempt - 1)) * random.uniform(0.5, 1.5)


def _fetch_with_retries(source: Source, partial: Path, path: Path, sha256: str | None, backoff_s: float) -> None:
    for attempt in count(1):
        try:
            return _fetch_rest(source, partial)
        except Replaced:
            partial.unlink(missing_ok=True)
            raise
        except NothingThere as error:
            partial.unlink(missing_ok=True)
            cause: Exception = error
        except (OSError, http.client.HTTPException, StorageError) as error:  # time-outs, resets, broken answers
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise _no_space(source, partial) from None
            cause = error
        if (pause := pause_after(attempt, cause, backoff_s)) is None:
            break
        time.sleep(pause)
    reason = str(cause) if isinstance(cause, StorageError) else getattr(cause, "reason", None) or repr(cause)
    known = f" (sha256 {sha256})" if sha256 else ""
    raise CheckpointError(
        f"cannot fetch {redact(source.url)}: {redact(str(reason))}. What has arrived is kept; run again to go on, "
        f"or put the file at {path} yourself{known}"
    )


def _fetch_rest(source: Source, partial: Path) -> None:
    """Appends to `partial` until it has all of the source. Raises OSError, HTTPException or StorageError."""
    have = partial.stat().st_size if partial.exists() else 0
    if have and have == source.size:
        return
    if source.size is None or have > source.size:
        have = 0
    elif source.size - have > shutil.disk_usage(partial.parent).free:
        raise _no_space(source, partial)
    with source.open(have) as (start, blocks), partial.open("ab" if start else "wb") as file:
        if start:
            file.truncate(start)
        done = start
        with _Progress(partial.stem, source.size) as progress:
            for block in blocks:
                file.write(block)
                done += len(block)
                progress.update(done)
        file.flush()
        os.fsync(file.fileno())
    if source.size is not None and done != source.size:
        raise OSError(f"the transfer ended at {done:,} of {source.size:,} bytes")


def _no_space(source: Source, partial: Path) -> CheckpointError:
    free = shutil.disk_usage(partial.parent).free
    size = f" of {source.size:,} bytes" if source.size else ""
    return CheckpointError(
        f"cannot fetch {redact(source.url)}{size}: there is no space for it in {partial.parent} ({free:,} bytes free); "
        "free some, or set DATA_ENGINE_CACHE to a folder on a larger disk"
    )


class _Progress:
    """A progress bar on a terminal, a line every ten seconds elsewhere."""

    def __init__(self, name: str, total: int | None) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

        self._name, self._total, self._spoken = name, total, time.monotonic()
        columns = ("{task.description}", BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
        self._bar = Progress(*columns, console=Console(stderr=True)) if sys.stderr.isatty() else None
        self._task = self._bar.add_task(name, total=total) if self._bar else None

    def __enter__(self) -> _Progress:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar:
            self._bar.stop()

    def update(self, done: int) -> None:
        if self._bar and self._task is not None:
            self._bar.update(self._task, completed=done)
        elif time.monotonic() - self._spoken > 10:
            self._spoken = time.monotonic()
            share = f"{done / self._total:.0%} of {self._total / 1e6:,.0f}" if self._total else f"{done / 1e6:,.0f}"
            if log.isEnabledFor(logging.INFO):  # whoever wants it among the logs gets it there
                log.info("%s: %s MB", self._name, share)
            else:
                print(f"{self._name}: {share} MB", file=sys.stderr)
