"""Whether the web can be reached at all: a server that is down is one of many, but without a network all seem down."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from urllib.parse import urlsplit

from data_engine.images.fetch import answers
from data_engine.images.settings import InputSettings

_HOSTS = 4  # so many may well go down one after the other, but not at once
_JUST_NOW_S = 1.0


class WebReach:
    """Knows who answered last, and asks them when somebody else does not. For any thread."""

    def __init__(self, settings: InputSettings, clock: Callable[[], float] = time.monotonic) -> None:
        self._settings = settings
        self._clock = clock
        self._addresses: dict[str, str] = {}  # by host, the one that answered last at the end
        self._answered = -math.inf
        self._lock = threading.Lock()

    def answered(self, address: str) -> None:
        """An image came from there."""
        host = urlsplit(address).netloc
        with self._lock:
            self._answered = self._clock()
            self._addresses.pop(host, None)
            self._addresses[host] = address
            if len(self._addresses) > _HOSTS:
                del self._addresses[next(iter(self._addresses))]

    def is_lost(self) -> bool:
        """Whether nobody answers any more who did. False where nobody ever has."""
        with self._lock:
            if self._clock() - self._answered < _JUST_NOW_S:
                return False
            addresses = list(self._addresses.values())
        return bool(addresses) and not any(answers(address, self._settings) for address in addresses)
