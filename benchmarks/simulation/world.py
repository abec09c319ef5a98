"""What the simulated workers, shards and store are like."""

from __future__ import annotations

import math
import random
from array import array
from collections.abc import Iterator
from dataclasses import dataclass

from data_engine.pipeline.scheduler import ShardTask

IMAGE_NAMES = [str(number) for number in range(100_000)]  # of a shard's images
_TIMES = 1 << 16


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """What is simulated. Times are seconds. Durations are lognormal: few shards are very long."""

    workers: int = 1000
    shards: int = 1_000_000
    seed: int = 0
    images_median: float = 12.0  # of a shard
    images_sigma: float = 1.0  # mean 20, the largest of a million about 1,500
    image_s: float = 4.0  # mean, on a worker of speed 1
    image_sigma: float = 0.5
    speed_sigma: float = 0.15  # of the workers' speeds
    images_per_commit: int = 50  # a loss costs the open slice
    commit_s: float = 1.0
    fetch_s: tuple[float, float] = (1.0, 5.0)  # from the assignment to the first decoded image
    careful_s: float = 0.3  # more for each image of a careful shard, where nothing overlaps
    lost_an_hour: float = 0.01  # of the workers; every second one with notice
    notice_s: float = 30.0
    start_s: tuple[float, float] = (120.0, 300.0)  # until a new worker has its place and its model
    slow_share: float = 0.003  # of the workers, at any time
    slow_factor: float = 5.0
    slow_s: float = 1800.0
    read_failures: float = 0.001  # of all attempts
    unreadable: float = 2e-6  # shards that fail at every attempt
    poison: float = 5e-6  # shards that kill (three of five at an image, one hangs at it, one kills on opening)
    store_away: tuple[float, float] = (0.0, 0.0)  # from, until
    store_patience_s: float = 120.0  # of a worker
    tick_s: float = 1.0
    known_sizes: bool = True  # the plan knows how many images a shard has; else they come in any order


class Input:
    """The shards of a world: how long they are, how long their images take, which of them are bad."""

    def __init__(self, world: World, chance: random.Random) -> None:
        self._world = world
        count = world.shards
        self.ids = [f"{number:016x}" for number in range(count)]
        self.number = {shard: number for number, shard in enumerate(self.ids)}
        self.images = array("i", bytes(4 * count))
        for number in range(count):
            images = round(chance.lognormvariate(math.log(world.images_median), world.images_sigma))
            self.images[number] = min(max(1, images), len(IMAGE_NAMES))
        mean = math.exp(world.image_sigma**2 / 2)
        self._times = [world.image_s * chance.lognormvariate(0, world.image_sigma) / mean for _ in range(_TIMES)]
        poisoned, unreadable = math.ceil(world.poison * count), math.ceil(world.unreadable * count)
        bad = chance.sample(range(count), poisoned + unreadable)
        kinds = ("kills", "opening", "kills", "hangs", "kills")
        self._poison = {
            shard: (kinds[place % 5], chance.randrange(self.images[shard]))
            for place, shard in enumerate(bad[:poisoned])
        }
        self.unreadable = frozenset(bad[poisoned:])

    def tasks(self) -> Iterator[ShardTask]:
        for shard, images in zip(self.ids, self.images, strict=True):
            yield ShardTask(shard, images if self._world.known_sizes else None)

    def seconds(self, shard: int, image: int) -> float:
        """Of a worker of speed 1."""
        return self._times[(shard * 31 + image) % _TIMES]

    def poison(self, shard: int, image: int) -> str | None:
        """What this image does to its worker."""
        kind, place = self._poison.get(shard, (None, -1))
        return kind if place == image and kind != "opening" else None

    def kills_on_opening(self, shard: int) -> bool:
        return self._poison.get(shard, (None, -1))[0] == "opening"
