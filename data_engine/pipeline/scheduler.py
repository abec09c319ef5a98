"""Which worker does which shard: a pure state machine. Events in, commands out; no Ray, no clock, no I/O.

Correctness does not rest on it: a slice is committed by whoever puts its record first, so a shard may be given out
twice. The scheduler decides what that costs: shards are retried elsewhere, suspects run alone, stragglers get a second
runner.
"""

from __future__ import annotations

import heapq
import random
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import Enum

from data_engine.pipeline.events import (
    Event,
    ImageDone,
    ImageStarted,
    ShardDone,
    ShardFailed,
    SliceCommitted,
    SliceLost,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """When to retry, when to give up. Times are seconds."""

    max_in_flight: int = 2  # shards a worker holds: one in the model, the others being fetched
    shard_retries: int = 3  # further tries of a shard that cannot be read
    retry_pause: float = 5.0  # doubled at every retry
    foreign_pause: float = 30.0  # before looking again at a shard that another driver commits
    image_deaths: int = 2  # workers that one image may kill
    shard_deaths: int = 8  # workers that one shard may kill before it is set aside, when no image can be blamed
    image_timeout: float = 1800.0  # a worker that says nothing for so long is killed
    give_up_after: int = 5  # workers lost in a row, or shards failed, before anything is done; later four times as many
    speculate: float | None = 2.0  # a second runner, once the first would take so many times longer than a new one


class Loss(Enum):
    """Why a worker is gone, and whose fault it is."""

    DIED = "died"  # charged to the image it held
    OUT_OF_MEMORY = "out of memory"  # charged likewise
    TIMED_OUT = "timed out"  # charged likewise
    PREEMPTED = "preempted"  # nobody's: its node went
    UNFIT = "unfit"  # the node's, which gets no more work
    STOPPED = "stopped"  # asked to


@dataclass(frozen=True, slots=True)
class ShardTask:
    """A shard to do, and how many images it has left, if that is known."""

    id: str
    images: int | None = None


@dataclass(frozen=True, slots=True)
class Assign:
    """Give the shard to the worker. `careful`: alone, image by image. `quarantined`: image id -> why it is left out."""

    worker: str
    shard: str
    careful: bool = False
    quarantined: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Leave:
    """Tell the worker that the shard is no longer its own."""

    worker: str
    shard: str


@dataclass(frozen=True, slots=True)
class Dismiss:
    """Kill the worker."""

    worker: str
    reason: str


@dataclass(frozen=True, slots=True)
class GiveUp:
    """The set-up is wrong: end the job."""

    reason: str


Command = Assign | Leave | Dismiss | GiveUp


@dataclass(slots=True)
class _Shard:
    """A shard that has been given out at least once."""

    task: ShardTask
    workers: list[str] = field(default_factory=list)
    failures: int = 0
    deaths: int = 0
    careful: bool = False
    avoid: str | None = None
    suspects: Counter[str] = field(default_factory=Counter)
    quarantined: dict[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class _Worker:
    node: str
    heard: float
    shards: list[str] = field(default_factory=list)  # the first is in the model
    since: float = 0.0  # when the first one became the first
    images: int = 0  # done of the first one
    ahead: int = 0  # of these, not committed yet
    image: str | None = None  # in the model
    draining: bool = False


class Scheduler:
    """Feed it what happens, do what it says, until `finished`."""

    def __init__(self, tasks: Iterable[ShardTask], policy: Policy, seed: int = 0) -> None:
        self._policy = policy
        self._pending = deque(tasks)
        self._later: list[tuple[float, int, ShardTask]] = []
        self._order = 0
        self._shards: dict[str, _Shard] = {}
        self._workers: dict[str, _Worker] = {}
        self._idle: dict[str, None] = {}  # in the order in which they became so
        self._random = random.Random(seed)
        self._shared = False
        self._stopping = False
        self._given_up = False
        self._losses_in_a_row = 0
        self._failures_in_a_row = 0
        self._loss_reasons: Counter[str] = Counter()
        self._worked = False  # an image has been done
        self._seconds = 0.0
        self._images_timed = 0
        self.total = len(self._pending)
        self.done = 0
        self.failed: dict[str, str] = {}
        self.excluded: dict[str, str] = {}  # node -> why it gets no work
        self.retries: Counter[str] = Counter()  # by cause

    # ---- what others may ask ----------------------------------------------------------------------------------------

    @property
    def finished(self) -> bool:
        """Nothing is left to do, or nobody is left who may do it."""
        if self._given_up or self._stopping:
            return not any(worker.shards for worker in self._workers.values())
        return self.done + len(self.failed) == self.total

    @property
    def unfinished(self) -> int:
        return self.total - self.done - len(self.failed)

    @property
    def waiting(self) -> int:
        """Shards that nobody has."""
        return len(self._pending) + len(self._later)

    @property
    def idle(self) -> int:
        return len(self._idle)

    def workers(self) -> Iterator[tuple[str, str, str | None, int]]:
        """(name, node, shard in the model or None, images done of it) of every worker, for display."""
        for name, worker in self._workers.items():
            yield name, worker.node, worker.shards[0] if worker.shards else None, worker.images

    # ---- events -----------------------------------------------------------------------------------------------------

    def worker_ready(self, name: str, node: str, now: float) -> list[Command]:
        """A worker has loaded the model."""
        self._workers[name] = _Worker(node, now)
        return self._feed(name, now)

    def worker_draining(self, name: str) -> list[Command]:
        """A worker's node is about to go: it gets nothing new. What it has not begun goes to others."""
        worker = self._workers.get(name)
        if worker is None or worker.draining:
            return []
        worker.draining = True
        self._idle.pop(name, None)
        waiting = worker.shards[1:]
        for shard in waiting:
            self._release(name, shard)
            self._requeue(self._shards[shard])
        return [Leave(name, shard) for shard in waiting]

    def worker_lost(self, name: str, loss: Loss, reason: str, now: float, node: str | None = None) -> list[Command]:
        """A worker is gone, or never came up."""
        worker = self._workers.pop(name, None)
        self._idle.pop(name, None)
        held = worker.shards if worker else []
        for shard in held:
            self._shards[shard].workers.remove(name)
        if loss in (Loss.DIED, Loss.OUT_OF_MEMORY, Loss.TIMED_OUT) and held:
            assert worker is not None
            self._charge(worker, loss, reason)
        if loss is Loss.UNFIT:
            self.excluded[node or (worker.node if worker else "?")] = reason
        for shard in reversed(held):
            if shard in self._shards and not self._shards[shard].workers:
                self._requeue(self._shards[shard])
        if held:
            self.retries[loss.value] += len(held)
        commands = self._count_loss(loss, reason)
        return commands + self._feed_idle(now)

    def report(self, name: str, events: Iterable[Event], now: float) -> list[Command]:
        """What a worker says. Of a worker that was given up for lost only what is done counts."""
        commands: list[Command] = []
        worker = self._workers.get(name)
        if worker is not None:
            worker.heard = now
        for event in events:
            if isinstance(event, ShardDone):
                commands += self._shard_done(name, event.shard, now)
            elif worker is not None:
                commands += self._heard(name, worker, event, now)
        return commands

    def tick(self, now: float) -> list[Command]:
        """Time passes: retries become due, silent workers are killed, stragglers get help."""
        commands: list[Command] = []
        while self._later and self._later[0][0] <= now:
            self._pending.append(heapq.heappop(self._later)[2])
        silent = [
            (name, worker)
            for name, worker in self._workers.items()
            if worker.shards and now - worker.heard > self._policy.image_timeout
        ]
        for name, worker in silent:
            reason = f"no sign of life for {self._policy.image_timeout:.0f} s"
            if worker.image:
                reason += f", at image {worker.image}"
            commands.append(Dismiss(name, reason))
            commands += self.worker_lost(name, Loss.TIMED_OUT, reason, now)
        commands += self._feed_idle(now)
        if self._idle and not self._pending and not self._stopping:
            commands += self._help(now)
        return commands

    def stop(self) -> None:
        """No shard is given out any more."""
        self._stopping = True
        self._idle.clear()

    # ---- a worker's report ------------------------------------------------------------------------------------------

    def _heard(self, name: str, worker: _Worker, event: Event, now: float) -> list[Command]:
        match event:
            case ImageStarted(shard, image_id):
                self._now_in_model(worker, shard, now)
                worker.image = image_id
            case ImageDone(shard):
                self._now_in_model(worker, shard, now)
                worker.image = None
                worker.images += 1
                worker.ahead += 1
                self._worked = True
                self._losses_in_a_row = 0
            case SliceCommitted(record):
                self._committed(worker, record.shard, record.totals.images)
            case SliceLost(shard):
                return self._shard_left(name, shard, now)
            case ShardFailed(shard):
                return self._shard_failed(name, event, now)
        return []

    def _now_in_model(self, worker: _Worker, shard: str, now: float) -> None:
        if worker.shards and worker.shards[0] != shard and shard in worker.shards:
            worker.shards.remove(shard)
            worker.shards.insert(0, shard)
            worker.since, worker.images, worker.ahead = now, 0, 0

    def _committed(self, worker: _Worker, shard: str, images: int) -> None:
        if worker.shards and worker.shards[0] == shard:
            worker.ahead = max(0, worker.ahead - images)
        state = self._shards.get(shard)
        if state is not None and state.task.images is not None:
            state.task = ShardTask(shard, max(0, state.task.images - images))

    def _shard_done(self, name: str, shard: str, now: float) -> list[Command]:
        state = self._shards.pop(shard, None)
        if state is None:
            return []
        self.done += 1
        self._worked = True
        self._losses_in_a_row = self._failures_in_a_row = 0
        worker = self._workers.get(name)
        if worker is not None and worker.shards and worker.shards[0] == shard:
            self._seconds += now - worker.since
            self._images_timed += max(1, worker.images)
        if not state.workers:  # done by one that was given up for lost: it must not be given out again
            self._pending = deque(task for task in self._pending if task.id != shard)
            self._later = [entry for entry in self._later if entry[2].id != shard]
            heapq.heapify(self._later)
        commands: list[Command] = []
        for holder in tuple(state.workers):
            self._drop(holder, shard, now)
            if holder != name:
                commands.append(Leave(holder, shard))
            commands += self._feed(holder, now)
        return commands

    def _shard_left(self, name: str, shard: str, now: float) -> list[Command]:
        state = self._shards.get(shard)
        if state is None or name not in state.workers:
            return []
        self._release(name, shard, now)
        if not state.workers:  # another driver is at it
            if not self._shared:
                self._shared = True
                mixed = list(self._pending)
                self._random.shuffle(mixed)  # two drivers that meet should part
                self._pending = deque(mixed)
            self._requeue(state, now + self._policy.foreign_pause)
        return self._feed(name, now)

    def _shard_failed(self, name: str, event: ShardFailed, now: float) -> list[Command]:
        shard = event.shard
        state = self._shards.get(shard)
        if state is None or name not in state.workers:
            return []
        self._release(name, shard, now)
        state.failures += 1
        if not state.workers:
            if event.permanent or state.failures > self._policy.shard_retries:
                self._set_aside(state, event.message)
            else:
                state.avoid = name
                self.retries["shard failed"] += 1
                self._requeue(state, now + self._policy.retry_pause * 2 ** (state.failures - 1))
        commands = self._feed(name, now)
        if self._failures_in_a_row >= self._policy.give_up_after * (4 if self.done else 1) and not self._given_up:
            count = self._failures_in_a_row
            commands.append(self._give_up(f"{count} shards in a row could not be done, the last: {event.message}"))
        return commands

    # ---- losses -----------------------------------------------------------------------------------------------------

    def _charge(self, worker: _Worker, loss: Loss, reason: str) -> None:
        """Who killed the worker is not known, only what it held: all of that runs alone from now on, image by image."""
        for shard in worker.shards:
            self._shards[shard].careful = True
        state = self._shards[worker.shards[0]]
        state.deaths += 1
        if worker.image is not None:
            state.suspects[worker.image] += 1
            count = state.suspects[worker.image]
            if count >= self._policy.image_deaths:
                state.quarantined[worker.image] = f"it killed its worker {count} times, last: {loss.value} ({reason})"
                state.deaths = 0
        if state.deaths >= self._policy.shard_deaths and not state.workers:
            self._set_aside(state, f"it killed its worker {state.deaths} times, last: {loss.value} ({reason})")

    def _count_loss(self, loss: Loss, reason: str) -> list[Command]:
        if loss in (Loss.PREEMPTED, Loss.STOPPED):
            return []
        self._losses_in_a_row += 1
        self._loss_reasons[reason] += 1
        if self._losses_in_a_row < self._policy.give_up_after * (4 if self._worked else 1) or self._given_up:
            return []
        reasons = "; ".join(f"{reason} ({count}x)" for reason, count in self._loss_reasons.most_common(3))
        return [
            self._give_up(f"{self._losses_in_a_row} workers in a row were lost before an image was done: {reasons}")
        ]

    def _give_up(self, reason: str) -> GiveUp:
        self._given_up = True
        self.stop()
        return GiveUp(reason)

    def _set_aside(self, state: _Shard, message: str) -> None:
        self.failed[state.task.id] = message
        self._failures_in_a_row += 1
        del self._shards[state.task.id]

    # ---- giving out -------------------------------------------------------------------------------------------------

    def _feed_idle(self, now: float) -> list[Command]:
        commands: list[Command] = []
        for name in tuple(self._idle):
            if not self._pending:
                break
            commands += self._feed(name, now)
        return commands

    def _feed(self, name: str, now: float) -> list[Command]:
        """Gives a worker as much as it may hold."""
        worker = self._workers.get(name)
        if worker is None or worker.draining or self._stopping:
            return []
        commands: list[Command] = []
        while self._pending and len(worker.shards) < self._policy.max_in_flight and not self._alone(worker):
            state = self._take(name, alone=not worker.shards)
            if state is None:
                break
            commands.append(self._assign(name, worker, state, now))
        if not worker.shards:
            self._idle.setdefault(name)
        return commands

    def _alone(self, worker: _Worker) -> bool:
        return any(self._shards[shard].careful for shard in worker.shards)

    def _take(self, name: str, alone: bool) -> _Shard | None:
        """The next shard for this worker: not one that just failed on it if others wait, careful ones only alone."""
        for _ in range(min(len(self._pending), 1 + len(self._workers))):
            task = self._pending[0]
            state = self._shards.get(task.id)
            if state is None:
                self._pending.popleft()
                state = self._shards[task.id] = _Shard(task)
                return state
            elsewhere = state.avoid == name and len(self._workers) > 1
            if (state.careful and not alone) or elsewhere:
                if elsewhere:
                    state.avoid = None  # one turn is enough
                self._pending.rotate(-1)
                continue
            self._pending.popleft()
            return state
        return None

    def _assign(self, name: str, worker: _Worker, state: _Shard, now: float) -> Assign:
        self._idle.pop(name, None)
        if not worker.shards:
            worker.since, worker.heard, worker.image, worker.images, worker.ahead = now, now, None, 0, 0
        worker.shards.append(state.task.id)
        state.workers.append(name)
        return Assign(name, state.task.id, state.careful, tuple(state.quarantined.items()))

    def _release(self, name: str, shard: str, now: float | None = None) -> None:
        self._shards[shard].workers.remove(name)
        self._drop(name, shard, now)

    def _drop(self, name: str, shard: str, now: float | None = None) -> None:
        worker = self._workers[name]
        first = worker.shards[0] == shard
        worker.shards.remove(shard)
        if first:
            worker.image, worker.images, worker.ahead = None, 0, 0
            worker.since = worker.since if now is None else now

    def _requeue(self, state: _Shard, at: float | None = None) -> None:
        if at is None:
            self._pending.appendleft(state.task)
        else:
            self._order += 1
            heapq.heappush(self._later, (at, self._order, state.task))

    # ---- the tail ---------------------------------------------------------------------------------------------------

    def _help(self, now: float) -> list[Command]:
        """For workers with nothing to do: shards that others hold and have not begun, then stragglers a second time."""
        commands: list[Command] = []
        for holder, worker in self._workers.items():
            for shard in worker.shards[1:]:
                if not self._idle:
                    return commands
                helper = next(iter(self._idle))
                self._release(holder, shard)
                commands += [
                    Leave(holder, shard),
                    self._assign(helper, self._workers[helper], self._shards[shard], now),
                ]
        if self._policy.speculate is None or not self._images_timed or not self._idle:
            return commands
        for _, shard in sorted(self._stragglers(now, self._policy.speculate), reverse=True):
            if not self._idle:
                break
            helper = next(iter(self._idle))
            self.retries["straggler"] += 1
            commands.append(self._assign(helper, self._workers[helper], self._shards[shard], now))
        return commands

    def _stragglers(self, now: float, factor: float) -> Iterator[tuple[float, str]]:
        """(seconds it will still take, shard) where a new runner would be through `factor` times sooner."""
        usual = self._seconds / self._images_timed
        mean_images = self._images_timed / max(1, self.done)
        for worker in self._workers.values():
            if not worker.shards:
                continue
            state = self._shards[worker.shards[0]]
            if len(state.workers) > 1 or state.careful:
                continue
            again = state.task.images if state.task.images is not None else mean_images  # from the last commit on
            passed = now - worker.since
            left = max(1.0, again - worker.ahead)
            pace = passed / worker.images if worker.images else max(passed, usual)
            if left * max(pace, usual) > factor * again * usual and passed > factor * usual:
                yield left * pace, worker.shards[0]
