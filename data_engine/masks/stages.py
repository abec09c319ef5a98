"""Where the seconds of mask generation go."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Stages:
    """Seconds by stage, since the last reset. Stages do not nest. Of those that run on several threads side by side,
    the seconds count as many times less, so that all together are about what a clock on the wall says.

    A GPU works on after the call that started it has returned: with `synchronise`, each stage waits for its own work,
    which makes the figures true and the whole slower.
    """

    def __init__(self, device: torch.device, synchronise: bool = False) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.synchronise = synchronise
        self._device = device
        self._lock = threading.Lock()

    @contextmanager
    def measure(self, stage: str, threads: int = 1) -> Iterator[None]:
        begun = time.perf_counter()
        try:
            yield
            if self.synchronise and self._device.type == "cuda":
                torch.cuda.synchronize(self._device)
        finally:
            seconds = (time.perf_counter() - begun) / threads
            with self._lock:
                self.seconds[stage] += seconds

    def reset(self) -> None:
        self.seconds.clear()
