"""What the scheduler knows of nodes: which have workers, which are shared, and which should get no more."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping


class Nodes:
    """Named by whatever name a worker says that its node has."""

    def __init__(self, deaths: int) -> None:
        self._deaths = deaths
        self._workers: Counter[str] = Counter()  # that take shards
        self._seen: set[str] = set()
        self._died_at: dict[str, set[str]] = {}  # node -> what its workers were at, since an image was done on it
        self._shared: set[str] = set()
        self.excluded: dict[str, str] = {}  # node -> why
        self.deadly: set[str] = set()  # those of them on which workers died

    def joined(self, node: str) -> None:
        """A worker takes shards."""
        self._workers[node] += 1
        self._seen.add(node)
        if self._workers[node] > 1:
            self._shared.add(node)

    def left(self, node: str) -> None:
        """A worker takes shards no longer."""
        self._workers[node] -= 1
        if not self._workers[node]:
            del self._workers[node]

    def went(self, node: str) -> None:
        """A worker did not die: perhaps the node is no more."""
        if node not in self._workers:
            self._seen.discard(node)
            self._died_at.pop(node, None)

    def image_done(self, node: str) -> None:
        if self._died_at:
            self._died_at.pop(node, None)

    def died(self, node: str, at: str) -> bool:
        """A worker died that had done no image. True if the node is to blame and is excluded from now on.

        Deaths `at` the same thing count once: that may be what kills.
        """
        if node in self.excluded:
            return False
        died_at = self._died_at.setdefault(node, set())
        died_at.add(at)
        if len(died_at) < self._deaths or not self._others(node):
            return False
        self.excluded[node] = f"{len(died_at)} workers in a row died on it before an image was done"
        self.deadly.add(node)
        del self._died_at[node]
        return True

    def _others(self, node: str) -> bool:
        """A worker on another node takes shards."""
        return any(other != node and other not in self.excluded for other in self._workers)

    def fewest(self, deaths: Mapping[str, int]) -> float:
        """The least number of deaths on a node where workers take shards. Infinite if there is none."""
        counts = (deaths.get(node, 0) for node in self._workers if node not in self.excluded)
        return min(counts, default=math.inf)

    def shared(self, node: str) -> bool:
        """More than one worker at a time has been ready there."""
        return node in self._shared

    @property
    def several(self) -> bool:
        """Workers of more than one node were ready, of those nodes that are neither gone nor excluded."""
        return len(self._seen - self.excluded.keys()) > 1
