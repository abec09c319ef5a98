"""Fetching a large file once: resumable, verified, atomic, safe for several processes at a time."""

from __future__ import annotations

import fcntl
import hashlib
import http.client
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import TextIO

from data_engine.errors import CheckpointError

_BLOCK = 1 << 20
_ATTEMPTS = 5
_TIMEOUT_S = 30.0


def download(url: str, path: Path, *, sha256: str, size: int, backoff_s: float = 1.0) -> None:
    """Fetches `url` to `path`, which appears only when whole and verified.

    An interrupted transfer leaves `<path>.partial`; the next call, also of another process, goes on from there.
    Raises CheckpointError when the server cannot be reached or the content is not what was promised.
    """
    partial = path.with_name(path.name + ".partial")
    with _lock_file(path) as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # a second process waits here, then finds the file
        if path.exists():
            return
        for attempt in range(_ATTEMPTS):
            try:
                _fetch_rest(url, partial, size)
                break
            except urllib.error.HTTPError as error:
                if error.code == 416:  # the server has less than what is here: that is not the promised file
                    partial.unlink(missing_ok=True)
                elif error.code < 500 and error.code not in (408, 429):
                    raise CheckpointError(
                        f"cannot fetch {url}: the server answered {error.code} {error.reason}"
                    ) from None
                cause: Exception = error
            except (OSError, http.client.HTTPException) as error:  # URLError, timeouts, resets, broken answers
                cause = error
            if attempt == _ATTEMPTS - 1:
                reason = getattr(cause, "reason", None) or repr(cause)
                raise CheckpointError(
                    f"cannot fetch {url}: {reason}. What has arrived is kept; run again to go on, or put the file at "
                    f"{path} yourself (sha256 {sha256})"
                )
            time.sleep(backoff_s * 2**attempt)
        found = sha256_of(partial)
        if found != sha256:
            partial.unlink()
            raise CheckpointError(
                f"{url} is not what it should be: sha256 {found}, expected {sha256}. The file was deleted; "
                "a proxy may have changed it, or the release did"
            )
        partial.replace(path)


def sha256_of(path: Path) -> str:
    """The hex sha256 of a file, read in blocks."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _fetch_rest(url: str, partial: Path, size: int) -> None:
    """Appends to `partial` until it has `size` bytes. Raises OSError or HTTPException on any failure."""
    have = partial.stat().st_size if partial.exists() else 0
    if have == size:
        return
    if have > size:
        have = 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as response:
        resumed = response.status == 206
        with partial.open("ab" if resumed and have else "wb") as file, _Progress(partial.stem, size) as progress:
            done = file.tell()
            while block := response.read(_BLOCK):
                file.write(block)
                done += len(block)
                progress.update(done)
    if done != size:
        raise OSError(f"the transfer ended at {done:,} of {size:,} bytes")


def _lock_file(path: Path) -> TextIO:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return open(path.with_name(path.name + ".lock"), "w")
    except OSError as error:
        raise CheckpointError(
            f"cannot write to {path.parent}: {error.strerror}; set DATA_ENGINE_CACHE to a folder that can be written"
        ) from None


class _Progress:
    """A progress bar on a terminal, a line every ten seconds elsewhere."""

    def __init__(self, name: str, total: int) -> None:
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
            print(f"{self._name}: {done / self._total:.0%} of {self._total / 1e6:,.0f} MB", file=sys.stderr)
