"""Tells a wrong set-up or a bad node, on which nothing works, from the failures that every large job has."""

from __future__ import annotations

from collections import Counter
from collections.abc import Set

_PATIENCE = 4  # times as many failures are borne by a set-up that has worked


class CircuitBreaker:
    """Counts failures in a row. Its answers are reasons to end the job, or None."""

    def __init__(self, give_up_after: int) -> None:
        self._give_up_after = give_up_after
        self._losses = 0
        self._loss_reasons: Counter[str] = Counter()
        self._failures = 0
        self._image_was_done = self._shard_was_done = False

    def image_done(self) -> None:
        self._image_was_done = True
        if self._losses:
            self._losses = 0
            self._loss_reasons.clear()

    def shard_done(self) -> None:
        self.image_done()
        self._shard_was_done = True
        self._failures = 0

    def worker_lost(self, reason: str, others: int) -> str | None:
        """One more, while `others` live: as long as those are more than were lost, the set-up may be right."""
        self._losses += 1
        self._loss_reasons[reason] += 1
        if self._losses < max(self._enough(self._image_was_done), others):
            return None
        reasons = "; ".join(f"{reason} ({count}x)" for reason, count in self._loss_reasons.most_common(3))
        return f"{self._losses} workers in a row were lost before an image was done: {reasons}"

    def shard_failed(self, message: str) -> str | None:
        """One more, for good."""
        self._failures += 1
        if self._failures < self._enough(self._shard_was_done):
            return None
        return f"{self._failures} shards in a row could not be done, the last: {message}"

    def _enough(self, worked: bool) -> int:
        return self._give_up_after * (_PATIENCE if worked else 1)


class Nodes:
    """Which nodes have workers, and which should get no more."""

    def __init__(self, deaths: int) -> None:
        self._deaths = deaths
        self._workers: Counter[str] = Counter()  # that take shards
        self._seen: set[str] = set()
        self._died_at: dict[str, set[str]] = {}  # node -> what its workers were at, since an image was done on it
        self.excluded: dict[str, str] = {}  # node -> why
        self.deadly: set[str] = set()  # those of them on which workers died

    def joined(self, node: str) -> None:
        """A worker takes shards."""
        self._workers[node] += 1
        self._seen.add(node)

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
        if len(died_at) < self._deaths or not self.other_than({node}):
            return False
        self.excluded[node] = f"{len(died_at)} workers in a row died on it before an image was done"
        self.deadly.add(node)
        del self._died_at[node]
        return True

    def other_than(self, nodes: Set[str]) -> bool:
        """A worker on another node takes shards."""
        return any(node not in nodes and node not in self.excluded for node in self._workers)

    @property
    def several(self) -> bool:
        """Workers of more than one node were ready, of those nodes that are neither gone nor excluded."""
        return len(self._seen - self.excluded.keys()) > 1
