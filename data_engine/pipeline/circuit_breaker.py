"""Tells a wrong set-up, in which nothing works, from the failures that every large job has."""

from __future__ import annotations

from collections import Counter

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
