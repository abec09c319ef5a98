"""A driver that is asked to end asks the workers of its training: a bell that it rings, and that they listen to."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from data_engine.stop_signals import StopSignals


class _Bell:
    """An actor on the cluster."""

    def __init__(self) -> None:
        self._rung = asyncio.Event()

    async def ring(self) -> None:
        self._rung.set()

    async def rung(self) -> None:
        """Answers once it has been rung."""
        await self._rung.wait()


def new_bell() -> Any:
    """A handle that can be sent to workers. It belongs to this driver, and ends with it."""
    import ray

    return ray.remote(num_cpus=0)(_Bell).remote()


class BellHeard(StopSignals):
    """A worker's ear. Nothing ends at once: the others wait for what this worker is at."""

    def __init__(self, bell: Any) -> None:
        super().__init__(lambda _: None)
        self._answer = bell.rung.remote()

    def asked(self) -> bool:
        import ray

        if not super().asked() and self._answer is not None and ray.wait([self._answer], timeout=0)[0]:
            try:
                ray.get(self._answer)
                self._event.set()
            except ray.exceptions.RayError:  # the bell's node is gone: nobody rings it any more
                self._answer = None
        return super().asked()

    @contextmanager
    def at_once(self) -> Iterator[None]:
        yield
