"""Workers and a store that behave like the real ones, one small step at a time, for the scheduler's state machine test.

Messages may be late in both directions: a worker acts on what it has read of its orders, and what it has not said when
it dies is never heard, though its commits stand.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from pipeline.scheduler_events import committed, done, failed, started, store_failed

from data_engine.pipeline.events import Event, ImageDone, ImageStarted, ShardDone, SliceLost
from data_engine.pipeline.scheduler import Assign, Command, Leave

IMAGES_A_COMMIT = 2


@dataclass
class TrueShard:
    """What a shard is, and what the store holds of it."""

    images: int
    poison: frozenset[str] = frozenset()
    kills_on_opening: bool = False
    unreadable: bool = False
    committed: int = 0


class Store(dict[str, TrueShard]):
    """What is in the store, by shard, and whether it answers."""

    away = False
    refuses = False  # while it is away: it is there, and takes nothing


@dataclass(eq=False)
class Run:
    shard: str
    quarantined: frozenset[str]
    careful: bool
    at: int | None = None  # not opened yet
    slice_start: int = 0
    in_model: bool = False


class Died(Exception):
    """The process is gone."""


@dataclass(eq=False)
class SimulatedWorker:
    name: str
    node: str
    store: Store
    runs: list[Run] = field(default_factory=list)
    orders: list[Command] = field(default_factory=list)  # not read yet
    unsaid: list[Event] = field(default_factory=list)
    draining: bool = False

    def read_orders(self) -> None:
        for order in self.orders:
            if isinstance(order, Assign):
                assert order.shard not in [run.shard for run in self.runs], "given what it has"
                images = frozenset(image for image, _ in order.quarantined)
                self.runs.append(Run(order.shard, images, order.careful))
            elif isinstance(order, Leave):
                self.runs = [run for run in self.runs if run.shard != order.shard]
        self.orders.clear()

    def step(self) -> None:
        """The next small thing: opens a shard, begins an image, ends one. Raises Died."""
        if not self.runs:
            return
        run = self.runs[0]
        shard = self.store[run.shard]
        if run.at is None:
            self._open(run, shard)
        elif not run.in_model:
            run.in_model = True
            self.unsaid.append(started(run.shard, str(run.at)))
            if str(run.at) in shard.poison - run.quarantined:
                raise Died
        else:
            run.in_model = False
            self.unsaid.append(done(run.shard, str(run.at)))
            run.at += 1
            if run.at == shard.images or run.at - run.slice_start == IMAGES_A_COMMIT:
                self._commit(run, shard)

    def fail(self, permanent: bool) -> None:
        """What it is at cannot be read."""
        self.unsaid.append(failed(self.runs.pop(0).shard, permanent))

    def give_up_on_the_store(self) -> None:
        """All that it holds cannot be recorded."""
        self.unsaid += [store_failed(run.shard, lasting=self.store.refuses) for run in self.runs]
        self.runs.clear()

    def urgent(self) -> bool:
        """A careful run says at once which image it begins."""
        return bool(self.runs) and self.runs[0].careful

    def _open(self, run: Run, shard: TrueShard) -> None:
        if self.store.away:
            self.give_up_on_the_store()
        elif shard.kills_on_opening:
            raise Died
        elif shard.unreadable:
            self.fail(permanent=False)
        elif shard.committed == shard.images:
            self._leave(run, ShardDone(run.shard))
        else:
            run.at = run.slice_start = shard.committed

    def _commit(self, run: Run, shard: TrueShard) -> None:
        assert run.at is not None
        if self.store.away:
            self.give_up_on_the_store()
            return
        if shard.committed != run.slice_start:
            self._leave(run, SliceLost(run.shard, 0))
            return
        shard.committed = run.at
        self.unsaid.append(committed(run.shard, run.at - run.slice_start, final=run.at == shard.images))
        run.slice_start = run.at
        if run.at == shard.images:
            self._leave(run, ShardDone(run.shard))

    def _leave(self, run: Run, event: Event) -> None:
        self.runs.remove(run)
        self.unsaid.append(event)


@dataclass
class Blame:
    """Which images were the last that a worker was heard to begin, when it died."""

    heard: dict[str, tuple[str, str]] = field(default_factory=dict)  # worker -> (shard, image)
    deaths: Counter[tuple[str, str]] = field(default_factory=Counter)
    careful: set[tuple[str, str]] = field(default_factory=set)  # those with a death in a careful run

    def hear(self, worker: str, events: list[Event]) -> None:
        for event in events:
            if isinstance(event, ImageStarted):
                self.heard[worker] = (event.shard, event.image_id)
            elif isinstance(event, ImageDone):
                self.heard.pop(worker, None)

    def charge(self, worker: str, careful: set[tuple[str, str]]) -> None:
        """`careful`: (worker, shard) of all careful runs."""
        if worker in self.heard:
            image = self.heard.pop(worker)
            self.deaths[image] += 1
            if (worker, image[0]) in careful:
                self.careful.add(image)
