"""Seconds by stage of code that is not ours: its functions are replaced by timed ones for a while."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import torch

OTHER = "other"


def synchronise(device: torch.device) -> None:
    """Waits until the device has done all that was asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class StageClock:
    """Charges every moment to the innermost stage that is running, or to "other".

    Waits for the device at every change of stage, which makes the figures true and the whole slower.
    """

    def __init__(self, device: torch.device) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._device = device
        self._running = [(OTHER, False)]
        self._since = self._now()

    @contextmanager
    def stage(self, name: str, *, whole: bool = False) -> Iterator[None]:
        """whole: stages inside of this one are charged to this one too."""
        outer, keeps = self._running[-1]
        self._charge()
        self._running.append((outer, True) if keeps else (name, whole))
        try:
            yield
        finally:
            self._charge()
            self._running.pop()

    def stop(self) -> dict[str, float]:
        """Charges what is left and returns all. The sum is the time since the clock was made."""
        self._charge()
        return dict(self.seconds)

    @contextmanager
    def timing(self, owner: Any, name: str, stage: str, *, whole: bool = False) -> Iterator[None]:
        """Has the function `owner.name` timed inside."""
        function: Callable[..., Any] = getattr(owner, name)
        own = vars(owner).get(name)

        @wraps(function)
        def timed(*arguments: Any, **keywords: Any) -> Any:
            with self.stage(stage, whole=whole):
                return function(*arguments, **keywords)

        setattr(owner, name, timed)
        try:
            yield
        finally:
            if own is None:
                delattr(owner, name)  # it is the class's again
            else:
                setattr(owner, name, own)

    def _charge(self) -> None:
        now = self._now()
        self.seconds[self._running[-1][0]] += now - self._since
        self._since = now

    def _now(self) -> float:
        synchronise(self._device)
        return time.perf_counter()
