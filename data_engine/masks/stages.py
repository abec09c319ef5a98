"""Where the seconds of mask generation go."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Stages:
    """Seconds by stage, since the last reset. Stages do not nest.

    A GPU works on after the call that started it has returned: with `synchronise`, each stage waits for its own work,
    which makes the figures true and the whole slower.
    """

    def __init__(self, device: torch.device, synchronise: bool = False) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.synchronise = synchronise
        self._device = device

    @contextmanager
    def measure(self, stage: str) -> Iterator[None]:
        begun = time.perf_counter()
        try:
            yield
            if self.synchronise and self._device.type == "cuda":
                torch.cuda.synchronize(self._device)
        finally:
            self.seconds[stage] += time.perf_counter() - begun

    def reset(self) -> None:
        self.seconds.clear()
