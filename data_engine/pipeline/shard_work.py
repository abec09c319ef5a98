"""What goes through a shard runner: shards to work on, and what was read of them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

from data_engine.images.shard import ShardDamaged
from data_engine.pipeline.events import ShardDone, ShardFailed
from data_engine.pipeline.plan import PlannedShard, Remaining
from data_engine.pipeline.rows import DecodedImage

POLL_S = 0.1
"""How often a thread of the runner that waits looks whether it still should."""


@dataclass(frozen=True, slots=True)
class ShardWork:
    """A shard and the point to go on from."""

    planned: PlannedShard
    start: Remaining
    seen_ids: Collection[str] = ()  # of the images before that point
    careful: bool = False  # nothing is decoded before it is its turn, so that ImageStarted names what kills a process
    quarantined: Mapping[str, str] = field(default_factory=dict)  # image id -> why it must not be touched again
    alone: Collection[int] = ()  # numbers of images that are worked on with no other in flight
    left_out: Mapping[int, str] = field(default_factory=dict)  # as `quarantined`, by the image's number
    left: threading.Event = field(default_factory=threading.Event)  # set when the rest is left to another writer


@dataclass(frozen=True, slots=True)
class FetchedImage:
    """An image whose bytes are here, being decoded meanwhile."""

    work: ShardWork
    index: int
    image_id: str
    next_offset: int | None
    decoded: Callable[[], DecodedImage]
    bytes: int  # that it takes once decoded
    fetch_s: float
    done: threading.Event = field(default_factory=threading.Event)

    @property
    def alone(self) -> bool:
        return self.index in self.work.alone


@dataclass(frozen=True, slots=True)
class ShardEnd:
    """Nothing more comes of a shard."""

    work: ShardWork
    damage: ShardDamaged | None = None
    failure: str | None = None
    changed: bool = False  # it is not the shard that was planned: what was read of it cannot be trusted
    away: bool = False  # its store does not answer now


Given = ShardWork | ShardDone | ShardFailed  # the last two: of a shard without work, to be reported in its turn
Item = FetchedImage | ShardEnd | ShardDone | ShardFailed | BaseException | None  # None: no more work
