"""What a local run does while a store, or the mount of its input, is away: it waits and tries again, for an hour."""

from __future__ import annotations

import time
from collections import Counter, defaultdict

from data_engine.errors import StorageError
from data_engine.pipeline.events import Event, ImageDone, ShardFailed, SliceCommitted, SliceLost
from data_engine.pipeline.job import Job
from data_engine.pipeline.policy import Policy
from data_engine.pipeline.progress import duration
from data_engine.pipeline.shard_queue import Shard
from data_engine.pipeline.store_outage import StoreOutage
from data_engine.retry import passes

POLICY = Policy()
_POLL_S = 0.1


class LocalOutage:
    """Waits, at no shard's expense, for what has worked in this run. What never did is said at once."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._outage = StoreOutage(POLICY)
        self._shards: dict[str, Shard] = defaultdict(lambda: Shard("", None))  # those that failed for it
        self._failures: Counter[str] = Counter()
        self._was_read = self._was_written = False
        self._since: float | None = None

    def failures_of(self, shard: str) -> int:
        return self._failures[shard]

    def pauses(self) -> bool:
        """Nothing more is to be begun now."""
        return self._outage.pauses(time.monotonic())

    def heard(self, event: Event) -> None:
        """Of an image that was read, or a slice: a store is there."""
        if isinstance(event, ImageDone) and event.error_type is None:
            self._was_read = True
        elif isinstance(event, (SliceCommitted, SliceLost)):
            self._was_written = True
            self._outage.answered()
            if isinstance(event, SliceCommitted) and event.record.shard in self._shards:
                self._shards[event.record.shard].progressed()

    def waits_for(self, failed: ShardFailed) -> bool:
        """Whether the shard is to be tried again. Raises StorageError when it is time to give up."""
        if not failed.of_store or not self._was_read:
            return False
        self._failures[failed.shard] += 1
        self._failed(failed.message, "the input")
        shard = self._shards[failed.shard]
        shard.failures += not self._outage.excuses(shard)
        return shard.failures <= POLICY.shard_retries  # beyond, others get through and it does not

    def waits_for_output(self, error: StorageError) -> bool:
        """Whether to try again what could not be written. Raises StorageError when it is time to give up."""
        if not self._was_written or not passes(error.__cause__):
            return False
        self._failed(str(error), "the output")
        return True

    def wait(self) -> None:
        """Until it is time to try again, or the job is to stop."""
        while self.pauses() and not self._job.stopping():
            time.sleep(_POLL_S)
            self._job.run_log.sample()
        if self._since is not None and not self._outage.away:
            self._job.progress.note(f"it is there again, after {duration(time.monotonic() - self._since)}")
            self._since = None

    def _failed(self, message: str, what: str) -> None:
        now = time.monotonic()
        if (reason := self._outage.failed(message, now, lasting=False)) is not None:
            raise StorageError(f"{reason}. What is committed is safe; the same command goes on")
        if self._since is None:
            self._since = now
            self._job.progress.note(f"waiting for {what}, at no shard's expense: {message}")
