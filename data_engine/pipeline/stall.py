"""Says that something takes long: a job that hangs in a mount or a decoder should not do so in silence."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from data_engine.pipeline.progress import duration

log = logging.getLogger(__name__)

_FIRST_S = 120.0


class Stall:
    """What is waited for now. One thread waits, any may mention it."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._waits: tuple[str, float] | None = None
        self._next = _FIRST_S

    @contextmanager
    def of(self, what: str) -> Iterator[None]:
        """It is waited for inside the block."""
        self._next = _FIRST_S
        self._waits = what, self._clock()
        try:
            yield
        finally:
            self._waits = None

    def mention(self) -> None:
        """Logs it after two minutes, after four, after eight and so on. Cheap to call often."""
        waits = self._waits
        if waits is None or (seconds := self._clock() - waits[1]) < self._next:
            return
        self._next *= 2
        log.warning("%s has taken %s so far; still waiting", waits[0], duration(seconds))
