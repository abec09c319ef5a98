"""A store that is away or refuses: one event, however many shards meet it, and no fault of theirs."""

from __future__ import annotations

import math

from data_engine.pipeline.policy import Policy
from data_engine.pipeline.shard_queue import Shard


class StoreOutage:
    """Begins when a shard fails for its store, and ends when the store takes or answers something of anybody's.

    Meanwhile nothing is given out, but for a try after each pause. Its answers are reasons to end the job, or None.
    """

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._answers = 0  # slices that were committed, or lost to others, by whomever
        self._tries = 0  # rounds of failures that no answer has followed
        self._refused = 0  # shards, of them, that a store refused which was there
        self._since = math.inf
        self._until = -math.inf
        self.message = ""

    @property
    def away(self) -> bool:
        return self._tries > 0

    def pauses(self, now: float) -> bool:
        """Nothing is to be given out yet."""
        return now < self._until

    def answered(self) -> None:
        """It is there."""
        self._answers += 1
        if self._tries:
            self._tries = self._refused = 0
            self._since, self._until = math.inf, -math.inf

    def failed(self, message: str, now: float, lasting: bool) -> str | None:
        """One more shard failed for it. `lasting`: it answers, and refuses, so that waiting for it will hardly help."""
        policy = self._policy
        self.message = message
        self._since = min(self._since, now)
        if now >= self._until:  # else it is of the same round: all workers meet an outage at about the same time
            pause = policy.store_pause * 2.0 ** min(self._tries, 30)
            self._until = now + min(pause, policy.store_longest_pause)
            self._tries += 1
        self._refused += lasting
        if self._refused >= policy.give_up_after:
            return f"the output cannot be used: {message}"
        if now - self._since >= policy.store_patience:
            return f"the store has taken nothing for {(now - self._since) / 60:.0f} minutes: {message}"
        return None

    def excuses(self, shard: Shard) -> bool:
        """Of one that has just failed for its store: it is charged only if others got through since it did so before.

        So a shard whose own objects cannot be had, though all else can, is set aside at last.
        """
        excused = shard.excused in (None, self._answers)
        shard.excused = self._answers
        return excused
