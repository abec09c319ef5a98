"""Which worker does which shard: a pure state machine. Events in, commands out; no Ray, no clock, no I/O.

Correctness does not rest on it: a slice is committed by whoever puts its record first, so a shard may be given out
twice. The scheduler decides what that costs: shards are retried elsewhere, suspects run alone, stragglers get a second
runner. docs/scheduling.md tells the story.
"""

from __future__ import annotations

import random
from collections import Counter, deque
from collections.abc import Iterable, Iterator

from data_engine.pipeline.allotment import Allotment
from data_engine.pipeline.blame import Blame
from data_engine.pipeline.circuit_breaker import CircuitBreaker
from data_engine.pipeline.commands import Assign, Command, Dismiss, GiveUp, Leave
from data_engine.pipeline.events import (
    Event,
    ImageDone,
    ImageStarted,
    ShardDone,
    ShardFailed,
    SliceCommitted,
    SliceLost,
)
from data_engine.pipeline.nodes import Nodes
from data_engine.pipeline.policy import Loss, Policy
from data_engine.pipeline.shard_queue import Shard, ShardQueue, ShardTask
from data_engine.pipeline.store_outage import StoreOutage
from data_engine.pipeline.worker_pace import Pace, Worker

__all__ = ["Assign", "Command", "Dismiss", "GiveUp", "Leave", "Loss", "Policy", "Scheduler", "ShardTask"]


class Scheduler:
    """Feed it what happens, do what it says, until `finished`.

    `now` is any clock that never goes back, in seconds. Names of workers are not used twice.
    """

    def __init__(self, tasks: Iterable[ShardTask], policy: Policy, seed: int = 0) -> None:
        self._policy = policy
        self._queue = ShardQueue(tasks)
        self._shards: dict[str, Shard] = {}  # given out at least once, neither done nor failed
        self._workers: dict[str, Worker] = {}
        self._idle: dict[str, None] = {}  # hold nothing, in the order in which they came to that
        self._dismissed: set[str] = set()
        self._pace = Pace()
        self._random = random.Random(seed)
        self._shared = False
        self._stopping = False
        self._given_up = False
        self._breaker = CircuitBreaker(policy.give_up_after)
        self._silence_checked = 0.0
        self.total = len(self._queue)
        self.done = 0
        self.failed: dict[str, str] = {}
        self._nodes = Nodes(policy.node_deaths)
        self._blame = Blame(policy, self._nodes)
        self._allotment = Allotment(self._queue, self._nodes, self._workers, policy.max_in_flight)
        self.store = StoreOutage(policy)
        self.excluded = self._nodes.excluded  # node -> why it should get no more workers
        self.retries: Counter[str] = Counter()  # shards given out again, by cause

    # ---- what others may ask ----------------------------------------------------------------------------------------

    @property
    def finished(self) -> bool:
        """Nothing is left to do or, once stopped, nobody is at it any more."""
        if self._given_up or self._stopping:
            return not any(worker.shards for worker in self._workers.values())
        return self.done + len(self.failed) == self.total

    @property
    def unfinished(self) -> int:
        return self.total - self.done - len(self.failed)

    @property
    def waiting(self) -> int:
        """Shards that nobody has."""
        return len(self._queue)

    @property
    def idle(self) -> int:
        return len(self._idle)

    def workers(self) -> Iterator[tuple[str, str, str | None, int]]:
        """(name, node, shard in the model or None, images done of it) of every worker, for display."""
        for name, worker in self._workers.items():
            yield name, worker.node, worker.shards[0].id if worker.shards else None, worker.images

    # ---- events -----------------------------------------------------------------------------------------------------

    def worker_ready(self, name: str, node: str, now: float) -> list[Command]:
        """A worker has loaded the model."""
        if name in self._workers:
            return []
        self._dismissed.discard(name)
        self._workers[name] = Worker(node, now)
        self._nodes.joined(node)
        return self._feed(name, now)

    def worker_draining(self, name: str) -> list[Command]:
        """A worker's node is about to go: it gets nothing new. What it has not begun goes to others, from `tick` on."""
        worker = self._workers.get(name)
        if worker is None or worker.draining:
            return []
        worker.draining = True
        self._nodes.left(worker.node)
        self._idle.pop(name, None)
        self._allotment.gone(name)
        waiting = worker.prefetched()
        for shard in waiting:
            self._take_back(name, worker, shard)
            if not shard.workers:
                self._queue.put(shard)
        return [Leave(name, shard.id) for shard in waiting]

    def worker_lost(self, name: str, loss: Loss, reason: str, now: float, node: str | None = None) -> list[Command]:
        """A worker is gone, or never came up; then its node may be unknown.

        One that was dismissed need not be reported, but may.
        """
        if name in self._dismissed:
            self._dismissed.discard(name)
            return []
        worker = self._workers.pop(name, None)
        self._idle.pop(name, None)
        self._allotment.gone(name)
        if worker and not worker.draining:
            self._nodes.left(worker.node)
        commands: list[Command] = []
        if loss is Loss.UNFIT and self.store.away:  # no judgement on a node that could not fetch its model
            loss = Loss.STORE_AWAY
            commands += self._give_up(self.store.failed(reason, now, lasting=False))
        known_unfit = False
        if node := worker.node if worker else node:
            known_unfit = loss is Loss.UNFIT and node in self.excluded
            self._blame.node(name, worker, node, loss, reason, self._shards.values())
        if worker and worker.shards:
            commands += self._free_shards(name, worker, loss, reason)
        if loss not in (Loss.PREEMPTED, Loss.STOPPED, Loss.STORE_AWAY) and not known_unfit:
            commands += self._give_up(self._breaker.worker_lost(reason, others=len(self._workers)))
        if loss is Loss.OUT_OF_MEMORY:  # its neighbours may be gone as well: `tick` gives out what it had
            return commands
        return commands + self._feed_idle(now)

    def report(self, name: str, events: Iterable[Event], now: float) -> list[Command]:
        """What a worker says. Of a worker that was given up for lost only what is done counts."""
        commands: list[Command] = []
        worker = self._workers.get(name)
        if worker is not None:
            worker.heard = now
        for event in events:
            if isinstance(event, ShardDone):
                commands += self._shard_done(event.shard, name, now)
            elif worker is None:
                continue
            elif isinstance(event, ImageStarted):
                if self._pace.turn_to(worker, event.shard, now):
                    worker.image = event.image_id
            elif isinstance(event, ImageDone):
                self._image_done(worker, event, now)
            elif isinstance(event, SliceCommitted):
                self._committed(worker, event.record.shard, event.record.totals.images)
            elif isinstance(event, SliceLost):
                commands += self._shard_left(name, worker, event.shard, now)
            elif isinstance(event, ShardFailed):
                commands += self._shard_failed(name, worker, event, now)
        return commands

    def tick(self, now: float) -> list[Command]:
        """Time passes: retries become due, silent workers are killed, stragglers get help. About once a second."""
        self._queue.due(now)
        commands: list[Command] = []
        if now - self._silence_checked >= self._policy.image_timeout / 100:
            self._silence_checked = now
            commands += self._dismiss_silent(now)
        commands += self._feed_idle(now)
        if self._idle and self._queue.only_suspects and not self.store.pauses(now):  # they wait for other nodes
            commands += self._help(now)
        return commands

    def stop(self) -> None:
        """No shard is given out any more."""
        self._stopping = True
        self._idle.clear()

    # ---- a worker's report ------------------------------------------------------------------------------------------

    def _image_done(self, worker: Worker, event: ImageDone, now: float) -> None:
        if not self._pace.turn_to(worker, event.shard, now):
            return
        worker.image = None
        worker.proven = True
        worker.images += 1
        worker.ahead += 1
        suspects = worker.shards[0].suspects
        if suspects:
            suspects.pop(event.image_id, None)  # it was only there when something else killed
        self._nodes.image_done(worker.node)
        self._breaker.image_done()

    def _committed(self, worker: Worker, shard_id: str, images: int) -> None:
        self.store.answered()
        if worker.shards and worker.shards[0].id == shard_id:
            worker.ahead = max(0, worker.ahead - images)
            worker.has_node = False
        shard = self._shards.get(shard_id)
        if shard is not None:
            shard.progressed()
            if shard.images is not None:
                shard.images = max(0, shard.images - images)

    def _shard_done(self, shard_id: str, name: str, now: float) -> list[Command]:
        shard = self._shards.pop(shard_id, None)
        if shard is None:
            if self.failed.pop(shard_id, None) is not None:  # by one that was given up for lost, after all
                self.done += 1
            return []
        self.done += 1
        self._pace.shards += 1
        self._breaker.shard_done()
        if not shard.workers:  # the same: it must not be given out again
            self._queue.remove(shard)
        commands: list[Command] = []
        for holder in shard.workers:
            self._pace.drop(self._workers[holder], shard, now)
            if holder != name:
                commands.append(Leave(holder, shard_id))
        for holder in shard.workers:
            commands += self._feed(holder, now)
        return commands

    def _shard_left(self, name: str, worker: Worker, shard_id: str, now: float) -> list[Command]:
        """Somebody else committed a slice first, and this worker leaves the rest to them."""
        self.store.answered()
        shard = self._held(worker, shard_id)
        if shard is None:
            return []
        self._release(name, worker, shard, now)
        if not shard.workers:
            self.retries["slice lost"] += 1
            if shard.raced:  # perhaps a worker of ours, which may be gone: look at once
                shard.raced = False
                self._queue.put(shard)
            else:  # another driver is at it
                if not self._shared:
                    self._shared = True
                    self._queue.shuffle(self._random)  # two drivers that meet should part
                self._queue.put_later(shard, now + self._policy.foreign_pause, foreign=True)
        return self._feed(name, now)

    def _shard_failed(self, name: str, worker: Worker, event: ShardFailed, now: float) -> list[Command]:
        shard = self._held(worker, event.shard)
        if shard is None:
            return []
        self._release(name, worker, shard, now)
        commands: list[Command] = []
        excused = False
        if event.of_store:
            commands += self._give_up(self.store.failed(event.message, now, lasting=event.permanent))
            excused = self.store.excuses(shard)
        shard.failures += not excused
        if not shard.workers:
            shard.avoid = name
            if excused:
                self.retries[Loss.STORE_AWAY.value] += 1
                self._queue.put(shard)
            elif shard.failures > self._policy.shard_retries or (event.permanent and not event.of_store):
                commands += self._set_aside(shard, event.message)
            else:
                self.retries["shard failed"] += 1
                self._queue.put_later(shard, now + self._policy.retry_pause * 2 ** (shard.failures - 1))
        return commands + self._feed(name, now)

    # ---- losses -----------------------------------------------------------------------------------------------------

    def _dismiss_silent(self, now: float) -> list[Command]:
        timeout = self._policy.image_timeout
        silent = [(n, w) for n, w in self._workers.items() if w.shards and now - w.heard > timeout]
        commands: list[Command] = []
        for name, worker in silent:
            reason = f"no sign of life for {timeout:.0f} s" + (f", at image {worker.image}" if worker.image else "")
            commands.append(Dismiss(name, reason))
            commands += self.worker_lost(name, Loss.TIMED_OUT, reason, now)
            self._dismissed.add(name)
        return commands

    def _free_shards(self, name: str, worker: Worker, loss: Loss, reason: str) -> list[Command]:
        """Of a lost worker."""
        first = worker.shards[0]
        for shard in worker.shards:
            shard.workers.remove(name)
            shard.raced = True
        hopeless = self._blame.shards(worker, loss, reason)
        worker.has_node = False
        commands = self._set_aside(first, hopeless) if hopeless is not None and not first.workers else []
        for shard in worker.shards:
            if shard.id in self._shards and not shard.workers:
                self._queue.put(shard)
                if not self._stopping:
                    self.retries[loss.value] += 1
        return commands

    def _set_aside(self, shard: Shard, message: str) -> list[Command]:
        """Nobody holds it: it will not be done."""
        self.failed[shard.id] = message
        del self._shards[shard.id]
        return self._give_up(self._breaker.shard_failed(message))

    def _give_up(self, reason: str | None) -> list[Command]:
        if reason is None or self._given_up:
            return []
        self._given_up = True
        self.stop()
        return [GiveUp(reason)]

    # ---- giving out -------------------------------------------------------------------------------------------------

    def _feed_idle(self, now: float) -> list[Command]:
        commands: list[Command] = []
        if self._queue and not self.store.pauses(now):
            for name in tuple(self._idle):
                commands += self._feed(name, now)
                if not self._queue:
                    break
        return commands

    def _feed(self, name: str, now: float) -> list[Command]:
        """Gives a worker as much as it may hold."""
        worker = self._workers[name]
        if worker.draining or self._stopping:
            return []
        commands: list[Command] = []
        while not self.store.pauses(now) and (shard := self._allotment.next_for(name)) is not None:
            commands.append(self._assign(name, worker, shard, now))
        if not worker.shards:
            self._idle.setdefault(name)
        return commands

    def _assign(self, name: str, worker: Worker, shard: Shard, now: float) -> Assign:
        self._idle.pop(name, None)
        if not worker.shards:
            worker.since, worker.heard, worker.image, worker.images, worker.ahead = now, now, None, 0, 0
        self._allotment.given(worker, shard)
        worker.shards.append(shard)
        shard.workers.append(name)
        self._shards[shard.id] = shard
        return Assign(name, shard.id, shard.careful, tuple(shard.quarantined.items()))

    def _assign_to(self, name: str, shard: Shard, now: float) -> Assign:
        return self._assign(name, self._workers[name], shard, now)

    def _held(self, worker: Worker, shard_id: str) -> Shard | None:
        return next((shard for shard in worker.shards if shard.id == shard_id), None)

    def _release(self, name: str, worker: Worker, shard: Shard, now: float) -> None:
        self._pace.drop(worker, shard, now)
        shard.workers.remove(name)

    def _take_back(self, name: str, worker: Worker, shard: Shard) -> None:
        """What a worker has not begun, or has begun just now."""
        worker.shards.remove(shard)
        shard.workers.remove(name)
        shard.raced = True

    # ---- the tail ---------------------------------------------------------------------------------------------------

    def _help(self, now: float) -> list[Command]:
        """For workers with nothing to do: shards that others hold and have not begun, then stragglers a second time."""
        commands: list[Command] = []
        helpers = deque(name for name in self._idle if not self._allotment.gives_way(self._workers[name]))
        for holder, shard in self._pace.not_begun(self._workers, now):
            if not helpers:
                return commands
            self._take_back(holder, self._workers[holder], shard)
            commands += [Leave(holder, shard.id), self._assign_to(helpers.popleft(), shard, now)]
        if self._policy.speculate is None or not helpers:
            return commands
        slow = self._pace.stragglers(self._workers.values(), now, self._policy.speculate)
        for _, shard in sorted(slow, key=lambda entry: -entry[0])[: len(helpers)]:
            self.retries["straggler"] += 1
            shard.raced = True
            commands.append(self._assign_to(helpers.popleft(), shard, now))
        return commands
