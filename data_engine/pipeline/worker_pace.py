"""What a worker is at, how fast that goes, and which workers are so slow that a second runner would be through first.

Seconds throughout.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from data_engine.pipeline.shard_queue import Shard


@dataclass(slots=True)
class Worker:
    """A worker that is ready, and what it holds."""

    node: str
    heard: float
    shards: list[Shard] = field(default_factory=list)  # the first is in the model
    masked: set[str] = field(default_factory=set)  # those that have left the model and wait for their last commit
    alone: bool = False  # it runs its one shard carefully
    has_node: bool = False  # for that shard no other worker of its node works
    since: float = 0.0  # when the first one became the first
    images: int = 0  # done of the first one
    ahead: int = 0  # of these, not committed yet
    image: str | None = None  # in the model
    draining: bool = False
    proven: bool = False  # it has done an image

    def prefetched(self) -> list[Shard]:
        """What it holds and has not begun."""
        return [shard for shard in self.shards[1:] if shard.id not in self.masked]


@dataclass(slots=True)
class Pace:
    """How long an image usually takes, over all workers."""

    seconds: float = 0.0
    images: int = 0
    shards: int = 0  # done

    @property
    def an_image(self) -> float:
        return self.seconds / self.images

    @property
    def images_a_shard(self) -> float:
        return self.images / max(1, self.shards)

    # ---- a worker's first shard changes -----------------------------------------------------------------------------

    def turn_to(self, worker: Worker, shard: str, now: float) -> bool:
        """The worker's model is at this shard. False if it is not one that the worker should hold."""
        shards = worker.shards
        if shards and shards[0].id == shard:
            return True
        place = next((place for place, held in enumerate(shards) if held.id == shard), None)
        if place is None:
            return False
        self._time(worker, now)
        worker.masked.add(shards[0].id)
        worker.masked.discard(shard)
        shards.insert(0, shards.pop(place))
        return True

    def drop(self, worker: Worker, shard: Shard, now: float) -> None:
        """The worker holds the shard no longer."""
        if worker.shards[0] is shard:
            self._time(worker, now)
        worker.shards.remove(shard)
        worker.masked.discard(shard.id)
        worker.alone = worker.alone and bool(worker.shards)
        worker.has_node = worker.has_node and bool(worker.shards)

    def _time(self, worker: Worker, now: float) -> None:
        if worker.images:
            self.seconds += now - worker.since
            self.images += worker.images
        worker.since, worker.image, worker.images, worker.ahead = now, None, 0, 0

    # ---- how long it will take --------------------------------------------------------------------------------------

    def still_takes(self, worker: Worker, now: float) -> float:
        """Seconds until the worker is through with its first shard, as far as one can tell; silence makes it longer."""
        if not self.images:
            return now - worker.since
        usual = self.an_image
        passed = now - worker.since
        own = passed / worker.images if worker.images else max(passed, usual)
        left = max(1.0, self.images_left(worker.shards[0]) - worker.ahead)
        return left * max(own, usual) + max(0.0, now - worker.heard - own)

    def images_left(self, shard: Shard) -> float:
        """That a new runner would have to do: all that is not committed."""
        return self.images_a_shard if shard.images is None else shard.images

    def not_begun(self, workers: Mapping[str, Worker], now: float) -> list[tuple[str, Shard]]:
        """(holder, a shard that it alone holds and has not begun), those first that would wait longest."""
        found = [
            (self.still_takes(worker, now), holder, shard)
            for holder, worker in workers.items()
            if len(worker.shards) > 1
            for shard in worker.prefetched()
            if len(shard.workers) == 1
        ]
        found.sort(key=lambda entry: -entry[0])
        return [entry[1:] for entry in found]

    def stragglers(self, workers: Iterable[Worker], now: float, factor: float) -> Iterator[tuple[float, Shard]]:
        """(seconds it will still take, shard) where a new runner would be through `factor` times sooner."""
        if not self.images:
            return
        usual = self.an_image
        for worker in workers:
            if not worker.shards:
                continue
            shard = worker.shards[0]
            if len(shard.workers) > 1 or shard.careful or now - worker.since <= factor * usual:
                continue
            left = self.still_takes(worker, now)
            if left > factor * max(1.0, self.images_left(shard)) * usual:
                yield left, shard
