"""Simulated workers and a simulated store under the real scheduler. Every image is an event."""

from __future__ import annotations

import heapq
import platform
import random
import resource
import time
from array import array
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from simulation.world import IMAGE_NAMES, Input, World

from data_engine.dataset.commits import CommitRecord, Part, Totals
from data_engine.pipeline.events import (
    Event,
    ImageDone,
    ImageStarted,
    ShardDone,
    ShardFailed,
    SliceCommitted,
    SliceLost,
)
from data_engine.pipeline.scheduler import Assign, Command, Dismiss, GiveUp, Leave, Loss, Policy, Scheduler

NO_PART = Part(file="", size=0, sha256="", rows=0)


@dataclass(slots=True, eq=False)
class Run:
    """A shard on a worker."""

    shard: int
    id: str
    careful: bool
    quarantined: frozenset[str]
    copy: bool
    at: int = 0
    slice_start: int = 0
    ready: bool = False
    fetching: bool = False
    left: bool = False
    dropped: bool = False  # with what was to be committed, because the store was away
    useful: float = 0.0  # of the open slice, at the worker's ordinary speed
    spent: float = 0.0


@dataclass(slots=True, eq=False)
class Actor:
    name: str
    node: str
    speed: float
    runs: list[Run] = field(default_factory=list)
    model: Run | None = None
    fetching: bool = False
    alive: bool = True
    stopping: bool = False
    slow_until: float = 0.0
    image_useful: float = 0.0
    image_spent: float = 0.0


class Simulation:
    def __init__(self, world: World, policy: Policy) -> None:
        self.world, self.policy = world, policy
        self.chance = random.Random(world.seed)
        self.input = Input(world, self.chance)
        self.committed = array("i", bytes(4 * world.shards))
        self.heap: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self.order = 0
        self.now = 0.0
        self.actors: dict[str, Actor] = {}
        self.hired = 0
        self.holders: Counter[int] = Counter()
        self.useful = self.redone = self.slowed = self.down = self.idle = self.tail_idle = 0.0
        self.queue_empty: float | None = None
        self.counts: Counter[str] = Counter()
        self.cpu_ns = 0
        self.calls = 0
        self.scheduler = Scheduler(self.input.tasks(), policy, seed=world.seed)

    def run(self) -> dict[str, Any]:
        begun = time.process_time()
        for _ in range(self.world.workers):
            self.hire()
        self.after(self.world.tick_s, self.tick)
        self.after(self.next_slow(), self.slow_down)
        heap = self.heap
        while not self.scheduler.finished:
            self.now, _, action, arguments = heapq.heappop(heap)
            action(*arguments)
        return self.result(time.process_time() - begun)

    def after(self, seconds: float, action: Callable[..., None], *arguments: Any) -> None:
        self.order += 1
        heapq.heappush(self.heap, (self.now + seconds, self.order, action, arguments))

    # ---- the driver -------------------------------------------------------------------------------------------------

    def tell(self, event: Callable[..., list[Command]], *arguments: Any) -> None:
        begun = time.thread_time_ns()
        commands = event(*arguments)
        self.cpu_ns += time.thread_time_ns() - begun
        self.calls += 1
        for command in commands:
            self.obey(command)

    def say(self, actor: Actor, *events: Event) -> None:
        self.tell(self.scheduler.report, actor.name, events, self.now)

    def obey(self, command: Command) -> None:
        if isinstance(command, Assign):
            actor, shard = self.actors[command.worker], self.input.number[command.shard]
            copy = self.holders[shard] > 0
            self.counts["copies"] += copy
            self.holders[shard] += 1
            quarantined = frozenset(image for image, _ in command.quarantined)
            actor.runs.append(Run(shard, command.shard, command.careful, quarantined, copy))
            self.fetch_next(actor)
        elif isinstance(command, Leave):
            actor = self.actors[command.worker]
            for run in [run for run in actor.runs if run.id == command.shard]:
                self.leave(actor, run)
        elif isinstance(command, Dismiss):
            self.gone(self.actors[command.worker])
        elif isinstance(command, GiveUp):
            raise SystemExit(f"the scheduler gave up: {command.reason}")

    def tick(self) -> None:
        self.tell(self.scheduler.tick, self.now)
        self.idle += self.scheduler.idle * self.world.tick_s
        if self.queue_empty is None and not self.scheduler.waiting:
            self.queue_empty = self.now
        if self.queue_empty is not None:
            self.tail_idle += self.scheduler.idle * self.world.tick_s
        self.after(self.world.tick_s, self.tick)

    # ---- workers come and go ----------------------------------------------------------------------------------------

    def hire(self) -> None:
        name = f"w{self.hired}"
        actor = Actor(name, f"n{self.hired // 8}", self.chance.lognormvariate(0, self.world.speed_sigma))
        self.hired += 1
        delay = self.chance.uniform(*self.world.start_s)
        self.down += delay
        self.after(delay, self.ready, actor)

    def ready(self, actor: Actor) -> None:
        self.actors[actor.name] = actor
        if self.world.lost_an_hour:
            self.after(self.chance.expovariate(self.world.lost_an_hour / 3600), self.strike, actor)
        self.tell(self.scheduler.worker_ready, actor.name, actor.node, self.now)

    def strike(self, actor: Actor) -> None:
        if not actor.alive:
            return
        self.counts["workers lost"] += 1
        if self.chance.random() < 0.5:
            self.lose(actor, Loss.DIED)
            return
        actor.stopping = True
        self.tell(self.scheduler.worker_draining, actor.name)
        self.after(self.world.notice_s, self.lose, actor, Loss.PREEMPTED)

    def lose(self, actor: Actor, loss: Loss) -> None:
        if actor.alive:
            self.gone(actor)
            self.tell(self.scheduler.worker_lost, actor.name, loss, "simulated", self.now)

    def gone(self, actor: Actor) -> None:
        actor.alive = False
        del self.actors[actor.name]
        for run in actor.runs:
            self.holders[run.shard] -= 1
            self.redone += run.spent
        if actor.model is not None:
            self.redone += actor.image_spent
        self.hire()

    def next_slow(self) -> float:
        world = self.world
        return self.chance.expovariate(max(1e-12, world.workers * world.slow_share / world.slow_s))

    def slow_down(self) -> None:
        if self.actors:
            actor = self.actors[self.chance.choice(tuple(self.actors))]
            actor.slow_until = self.now + self.world.slow_s
            self.counts["slow spells"] += 1
        self.after(self.next_slow(), self.slow_down)

    # ---- a worker's work --------------------------------------------------------------------------------------------

    def fetch_next(self, actor: Actor) -> None:
        if actor.fetching or not actor.alive or actor.stopping:
            return
        run = next((run for run in actor.runs if not run.ready and not run.fetching), None)
        if run is not None:
            actor.fetching = run.fetching = True
            run.at = run.slice_start = self.committed[run.shard]
            self.after(self.chance.uniform(*self.world.fetch_s), self.fetched, actor, run)

    def fetched(self, actor: Actor, run: Run) -> None:
        if not actor.alive:
            return
        if not run.left and self.waits_for_store(self.fetched, actor, run):
            return
        actor.fetching = run.fetching = False
        if run.left:
            self.fetch_next(actor)
            return
        if self.input.kills_on_opening(run.shard):
            self.counts["deaths by poison"] += 1
            self.lose(actor, Loss.DIED)
            return
        run.ready = True
        if run.shard in self.input.unreadable or self.chance.random() < self.world.read_failures:
            self.leave(actor, run)
            self.say(actor, ShardFailed(run.id, "", "cannot be read"))
        elif run.at >= self.input.images[run.shard]:  # another runner committed the end in the meantime
            self.leave(actor, run)
            self.say(actor, ShardDone(run.id))
        self.fetch_next(actor)
        self.begin(actor)

    def begin(self, actor: Actor) -> None:
        """The next image of the first shard, if it is there."""
        if actor.model is not None or actor.stopping or not actor.alive:
            return
        run = next((run for run in actor.runs if run.at < self.input.images[run.shard]), None)
        if run is None or not run.ready:
            return
        actor.model = run
        self.say(actor, ImageStarted(run.id, IMAGE_NAMES[run.at]))
        if actor.alive:
            self.work(actor, run)

    def work(self, actor: Actor, run: Run) -> None:
        seconds = self.input.seconds(run.shard, run.at) / actor.speed
        poison = self.input.poison(run.shard, run.at)
        if poison is not None:
            if IMAGE_NAMES[run.at] not in run.quarantined:
                self.counts["deaths by poison"] += 1
                actor.image_spent = seconds
                if poison == "kills":
                    self.after(seconds, self.lose, actor, Loss.DIED)
                return
            seconds = 0.001
        spent = seconds * self.world.slow_factor if self.now < actor.slow_until else seconds
        spent += self.world.careful_s if run.careful else 0.0
        actor.image_useful, actor.image_spent = seconds, spent
        self.after(spent, self.image_end, actor, run)

    def image_end(self, actor: Actor, run: Run) -> None:
        if not actor.alive:
            return
        actor.model = None
        if run.left:
            self.redone += actor.image_spent
            self.begin(actor)
            return
        done = ImageDone(run.id, IMAGE_NAMES[run.at], 0, None, None, actor.image_spent)
        run.at += 1
        run.useful += actor.image_useful
        run.spent += actor.image_spent
        final = run.at == self.input.images[run.shard]
        if final or actor.stopping or run.at - run.slice_start == self.world.images_per_commit:
            self.after(self.world.commit_s, self.commit, actor, run, run.slice_start, run.at, run.useful, run.spent)
            run.slice_start, run.useful, run.spent = run.at, 0.0, 0.0
        if actor.stopping:
            self.say(actor, done)
            self.after(self.world.commit_s + 0.5, self.lose, actor, Loss.PREEMPTED)
        elif final:
            self.say(actor, done)
            self.begin(actor)
        else:
            actor.model = run
            self.say(actor, done, ImageStarted(run.id, IMAGE_NAMES[run.at]))
            self.work(actor, run)

    def commit(self, actor: Actor, run: Run, first: int, end: int, useful: float, spent: float) -> None:
        shard = run.shard
        if actor.alive and not run.dropped and self.waits_for_store(self.commit, actor, run, first, end, useful, spent):
            return
        if not actor.alive or run.dropped or self.committed[shard] != first:  # died on the way, or another was faster
            self.redone += spent
            if actor.alive and not run.left:
                self.leave(actor, run)
                self.say(actor, SliceLost(run.id, 0))
            return
        self.committed[shard] = end
        self.useful += useful
        self.slowed += spent - useful
        final = end == self.input.images[shard]
        if final:
            self.counts["copies that won"] += run.copy
            if not run.left:
                self.leave(actor, run)
        record = CommitRecord(
            fingerprint="",
            shard=run.id,
            slice=0,
            first_image=first,
            final=final,
            images=NO_PART,
            masks=NO_PART,
            totals=Totals(images=end - first),
            owner=actor.name,
            attempt="",
        )
        events: tuple[Event, ...] = (SliceCommitted(record), ShardDone(run.id)) if final else (SliceCommitted(record),)
        self.say(actor, *events)

    def waits_for_store(self, action: Callable[..., None], actor: Actor, run: Run, *arguments: Any) -> bool:
        """While the store is away: does it once it is back or, if that is too late, drops all that the worker has."""
        begins, ends = self.world.store_away
        if not begins <= self.now < ends:
            return False
        if self.now + self.world.store_patience_s > ends:
            self.after(ends - self.now, action, actor, run, *arguments)
        else:
            self.after(self.world.store_patience_s, self.drop_all, actor, run)
            self.redone += arguments[-1] if arguments else 0.0
        return True

    def drop_all(self, actor: Actor, waited: Run) -> None:
        if not actor.alive or waited.dropped:
            return
        self.counts["workers that waited for the store in vain"] += 1
        actor.fetching = False
        for run in dict.fromkeys((waited, *actor.runs)):
            run.dropped = True
            if not run.left:
                self.leave(actor, run)
                self.say(actor, ShardFailed(run.id, "", "the store is away", of_store=True))

    def leave(self, actor: Actor, run: Run) -> None:
        run.left = True
        self.redone += run.spent
        run.spent = 0.0
        actor.runs.remove(run)
        self.holders[run.shard] -= 1
        if not self.holders[run.shard]:
            del self.holders[run.shard]

    # ---- what it came to --------------------------------------------------------------------------------------------

    def result(self, process_s: float) -> dict[str, Any]:
        scheduler, world = self.scheduler, self.world
        whole = world.workers * self.now
        spent = {
            "useful": self.useful,
            "done again": self.redone,
            "slow spells and careful runs": self.slowed,
            "starting": self.down,
            "no shard": self.idle,
        }
        tail = self.now - (self.now if self.queue_empty is None else self.queue_empty)
        images = sum(self.committed)
        not_whole = sum(
            self.committed[number] != self.input.images[number]
            for number in range(world.shards)
            if self.input.ids[number] not in scheduler.failed
        )
        cpu_s = self.cpu_ns / 1e9
        return {
            "world": asdict(world),
            "policy": asdict(self.policy),
            "makespan_h": round(self.now / 3600, 3),
            "utilisation": round(self.useful / whole, 4),
            "shares_of_worker_time": {
                **{name: round(seconds / whole, 5) for name, seconds in spent.items()},
                "waiting for the first image": round(1 - sum(spent.values()) / whole, 5),
            },
            "tail": {"seconds": round(tail, 1), "idle_seconds_a_worker": round(self.tail_idle / world.workers, 1)},
            "shards": {"done": scheduler.done, "failed": len(scheduler.failed), "done_but_not_whole": not_whole},
            "images": images,
            "failed": dict(list(scheduler.failed.items())[:20]),
            "retries": dict(scheduler.retries),
            "counts": dict(self.counts),
            "driver": {
                "cpu_s": round(cpu_s, 1),
                "cpu_us_a_shard": round(1e6 * cpu_s / scheduler.done, 1),
                "shards_a_second": round(scheduler.done / cpu_s),
                "calls": self.calls,
                "cpu_us_a_call": round(1e6 * cpu_s / self.calls, 2),
            },
            "simulation_cpu_s": round(process_s, 1),
            "peak_memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
            "python": platform.python_version(),
        }
