"""What SIGINT, SIGTERM and SIGHUP do to long work: it ends at the next good moment, and at once when asked again."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


class Stopped(KeyboardInterrupt):
    """Work that was asked to end has ended, and kept all that it had done."""


class StopSignals:
    """While `gently` is entered the first signal only makes `asked` true; otherwise, and the second time, a signal
    raises KeyboardInterrupt. A terminal that is closed may say SIGHUP twice."""

    def __init__(self, note: Callable[[str], None]) -> None:
        self._note = note
        self._event = threading.Event()
        self._gently = False

    def asked(self) -> bool:
        return self._event.is_set()

    @contextmanager
    def gently(self) -> Iterator[None]:
        self._gently = True
        try:
            yield
        finally:
            self._gently = False

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Within gentle work: what takes long and may end anywhere. Raises KeyboardInterrupt if it is to end."""
        self._gently = False
        try:
            if self.asked():
                raise KeyboardInterrupt
            yield
        finally:
            self._gently = True

    def on_signal(self, number: int, _: FrameType | None) -> None:
        again = self.asked()
        if number == signal.SIGHUP and again:
            return
        self._event.set()
        if again or not self._gently:
            raise KeyboardInterrupt
        self._note(f"{signal.Signals(number).name}: stopping; once more to stop at once")


@contextmanager
def stop_signals(note: Callable[[str], None]) -> Iterator[StopSignals]:
    """Listens to the signals until the end of the block, in place of one that does so around it. note: says to people
    that one was heard."""
    stop = StopSignals(note)
    if threading.current_thread() is not threading.main_thread():  # only that one can listen to signals
        yield stop
        return
    numbers = [signal.SIGINT, signal.SIGTERM]
    hung_up = signal.getsignal(signal.SIGHUP)
    if hung_up == signal.SIG_DFL or isinstance(getattr(hung_up, "__self__", None), StopSignals):  # not under nohup
        numbers.append(signal.SIGHUP)
    previous = {number: signal.signal(number, stop.on_signal) for number in numbers}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
