"""One writer an output in a store, which has no locks: a small object that its holder writes anew every few seconds.

`_lock/00000001.json`, and 2, 3, … for those that take over from a dead one. Put-if-absent decides who gets a number,
and the highest number has the lock. Clocks are not compared: whoever comes watches the object on a clock of its own,
and takes over once it has not changed for a while.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

from data_engine.errors import StorageError
from data_engine.pipeline.commit import delete, new_owner, put, put_if_absent
from data_engine.retry import ONCE, PATIENT, response_of
from data_engine.storage import is_local, join, list_names, local_path, read_bytes, redact
from data_engine.train.supervised.output_lock import only_writer

logger = logging.getLogger(__name__)

FOLDER = "_lock"
_LAST_SIGN_S = 15.0
_NOT_IMPLEMENTED = 501  # what some stores answer to a conditional write


@dataclass(frozen=True, slots=True)
class Pulse:
    """How often a holder gives a sign of life, and after how long without one it is taken for dead."""

    every: float = 15.0
    silence: float = 60.0
    look: float = 3.0
    """How often someone who waits looks."""
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep


PULSE = Pulse()


@contextmanager
def only_writer_in_store(url: str, pulse: Pulse | None = None) -> Iterator[StoreLock]:
    """Holds the lock of a folder in a store. That of a dead process is free after `pulse.silence` seconds.

    Raises StorageError where another process is at work in it, and for a store that cannot be used.
    """
    lock = StoreLock(url, pulse or PULSE)
    try:
        lock.take()
        yield lock
    finally:
        lock.release()


@contextmanager
def only_writer_anywhere(output: str) -> Iterator[None]:
    """Holds the lock of a folder that is there, or of one in a store."""
    held = only_writer(local_path(output)) if is_local(output) else only_writer_in_store(output)
    with held:
        yield


class StoreLock:
    def __init__(self, url: str, pulse: Pulse) -> None:
        self._url = url
        self._pulse = pulse
        self._patience = PATIENT
        self._facts = {
            "owner": new_owner(),
            "host": platform.node(),
            "pid": os.getpid(),
            "since": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        }
        self._number = 0
        self._beats = 0
        self._released = threading.Event()
        self._thread = threading.Thread(target=self._live, name="store-lock", daemon=True)

    def take(self) -> None:
        number = self._dead_or_free() + 1
        if not self._put_new(number):
            raise self._taken(self._read(number))
        self._number = number
        for old in self._numbers():
            if old < number:
                delete(self._file(old))
        self._patience = ONCE  # from here on, whoever asks asks again
        self._thread.start()

    def insist(self) -> None:
        """Asks the store. Raises LockLost where another process has the lock by now, StorageError where it is away."""
        held = max(self._numbers(), default=0)
        stands = self._read(held) if held else {}
        if held != self._number or stands.get("owner") != self._facts["owner"]:
            raise LockLost(
                f"{redact(self._url)}: {_named(stands)} has taken over, as nothing was heard of this process for "
                f"{self._pulse.silence:.0f} s: this one ends, and has written nothing since"
            )

    def release(self) -> None:
        self._released.set()
        if self._thread.is_alive():
            self._thread.join(_LAST_SIGN_S)  # or its sign of life would come after the lock was given back
        if self._number:
            delete(self._file(self._number))

    def _dead_or_free(self) -> int:
        """The number of the last holder, once it is dead; 0 where there is none."""
        pulse = self._pulse
        while number := max(self._numbers(), default=0):
            stands, since = self._read(number), pulse.clock()
            if stands:
                logger.warning(
                    "%s: %s was at work in it; waiting %.0f s for a sign of life",
                    redact(self._url),
                    _named(stands),
                    pulse.silence,
                )
            while stands and pulse.clock() - since < pulse.silence:
                pulse.sleep(pulse.look)
                now = self._read(number)
                if now and now != stands:
                    raise self._taken(now)
                stands = now
            if max(self._numbers(), default=0) == number:
                return number
        return 0

    def _taken(self, holder: dict[str, Any]) -> StorageError:
        return StorageError(
            f"{redact(self._url)}: {_named(holder)} is at work in it; wait for its end, or choose another output"
        )

    def _put_new(self, number: int) -> bool:
        try:
            return put_if_absent(self._file(number), self._content())
        except (StorageError, NotImplementedError) as error:
            if isinstance(error, StorageError) and response_of(error.__cause__)[1] != _NOT_IMPLEMENTED:
                raise
            return put_if_absent(self._file(number), self._content(), single_writer=True)

    def beat(self) -> None:
        """Gives a sign of life. Raises as `insist` does."""
        self.insist()
        self._beats += 1
        put(self._file(self._number), self._content(), self._patience)

    def _live(self) -> None:
        while not self._released.wait(self._pulse.every):
            try:
                self.beat()
            except LockLost:
                return  # whoever writes next finds out
            except StorageError as error:
                logger.debug("no sign of life could be left: %s", error)

    def _numbers(self) -> list[int]:
        names = list_names(join(self._url, FOLDER), self._patience)
        return [int(name[:-5]) for name in names if name.endswith(".json") and name[:-5].isdigit()]

    def _read(self, number: int) -> dict[str, Any]:
        """Empty for one that is gone."""
        try:
            found = json.loads(read_bytes(self._file(number), self._patience))
        except (FileNotFoundError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def _file(self, number: int) -> str:
        return join(self._url, FOLDER, f"{number:08d}.json")

    def _content(self) -> bytes:
        return json.dumps({**self._facts, "beats": self._beats}).encode()


class LockLost(StorageError):
    """Another process took over the output."""


def _named(facts: dict[str, Any]) -> str:
    if "host" not in facts:
        return "another process"
    return f"process {facts.get('pid')} on {facts['host']} (since {facts.get('since')})"
