"""Which worker does which shard: a pure state machine. Events in, commands out; no Ray, no clock, no I/O.

Correctness does not rest on it: a slice is committed by whoever puts its record first, so a shard may be given out
twice. The scheduler decides what that costs: shards are retried elsewhere, suspects run alone, stragglers get a second
runner. docs/scheduling.md tells the story.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import partial

from data_engine.pipeline.circuit_breaker import CircuitBreaker, Nodes
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
from data_engine.pipeline.policy import Loss, Policy
from data_engine.pipeline.shard_queue import Death, Shard, ShardQueue, ShardTask
from data_engine.pipeline.worker_pace import Pace, Worker

__all__ = ["Assign", "Command", "Dismiss", "GiveUp", "Leave", "Loss", "Policy", "Scheduler", "ShardTask"]

_CHARGED = (Loss.DIED, Loss.OUT_OF_MEMORY, Loss.TIMED_OUT)


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
        self._clearing: set[str] = set()  # get nothing new, to be free for a shard that needs a worker of its own
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
        self._clearing.discard(name)
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
        self._clearing.discard(name)
        if worker and not worker.draining:
            self._nodes.left(worker.node)
        known_unfit = False
        if node := worker.node if worker else node:
            known_unfit = loss is Loss.UNFIT and node in self.excluded
            self._node_lost(name, worker, node, loss, reason)
        commands = self._free_shards(name, worker, loss, reason) if worker and worker.shards else []
        if loss not in (Loss.PREEMPTED, Loss.STOPPED) and not known_unfit:
            commands += self._give_up(self._breaker.worker_lost(reason, others=len(self._workers)))
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
        if self._idle and self._queue.only_suspects:  # and those wait for workers on other nodes
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
        if worker.shards and worker.shards[0].id == shard_id:
            worker.ahead = max(0, worker.ahead - images)
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
        shard.failures += 1
        commands: list[Command] = []
        if not shard.workers:
            if event.permanent or shard.failures > self._policy.shard_retries:
                commands += self._set_aside(shard, event.message)
            else:
                shard.avoid = name
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

    def _node_lost(self, name: str, worker: Worker | None, node: str, loss: Loss, reason: str) -> None:
        """What the loss of a worker says of its node."""
        if loss is Loss.UNFIT:
            self.excluded[node] = reason
        elif loss not in _CHARGED:
            self._nodes.went(node)
        elif worker is None or not worker.proven:  # many that worked and die at once may have the network in common
            at = f"shard {worker.shards[0].id}" if worker and worker.shards else f"worker {name}"
            if self._nodes.died(node, at):
                for shard in self._shards.values():
                    shard.forgive(node)

    def _free_shards(self, name: str, worker: Worker, loss: Loss, reason: str) -> list[Command]:
        """Of a lost worker. Who killed it is not known, only what it held: all of that runs alone from now on."""
        commands: list[Command] = []
        first = worker.shards[0]
        charged = loss in _CHARGED
        if loss is Loss.PREEMPTED and not worker.draining:  # an image may bring down whole nodes
            first.preemptions += 1
            charged = first.preemptions >= self._policy.shard_preemptions
        for shard in worker.shards:
            shard.workers.remove(name)
            shard.raced = True
            if charged:
                shard.careful = True
                shard.nodes.add(worker.node)
        if charged and worker.node not in self._nodes.deadly:
            how = f"{loss.value} ({reason})"
            death = Death(worker.node, worker.alone)
            nodes = 2 if self._nodes.several else 1
            first.blame(worker.image, death, how, self._policy.image_deaths, nodes)
            if first.deaths >= self._policy.shard_deaths and not first.workers:
                commands += self._set_aside(first, f"it killed its worker {first.deaths} times, last: {how}")
        elif loss is Loss.UNFIT:  # unless it is the shard, which would have one node after the other excluded
            first.failures += 1
            if first.failures > self._policy.shard_retries and not first.workers:
                commands += self._set_aside(first, reason)
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
        if self._queue:
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
        suits = partial(self._suits, worker.node)
        while len(worker.shards) < self._policy.max_in_flight and not worker.alone and not self._clears(name, worker):
            shard = self._queue.take(name, not worker.shards, len(self._workers) > 1, suits)
            if shard is None:
                break
            commands.append(self._assign(name, worker, shard, now))
        if not worker.shards:
            self._idle.setdefault(name)
        return commands

    def _clears(self, name: str, worker: Worker) -> bool:
        """A suspect waits for a worker that holds nothing: this one takes nothing more until then."""
        if not worker.shards or not self._queue.has_suspect(partial(self._suits, worker.node)):
            self._clearing.discard(name)
        elif len(self._clearing) < self._queue.suspects:
            self._clearing.add(name)
        elif len(self._clearing) > self._queue.suspects:
            self._clearing.discard(name)
        return name in self._clearing

    def _suits(self, node: str, shard: Shard) -> bool:
        """A suspect is tried where it has not killed yet, while there is such a node: that may be what kills."""
        return node not in shard.nodes or not self._nodes.other_than(shard.nodes)

    def _assign(self, name: str, worker: Worker, shard: Shard, now: float) -> Assign:
        self._idle.pop(name, None)
        if not worker.shards:
            worker.since, worker.heard, worker.image, worker.images, worker.ahead = now, now, None, 0, 0
        worker.alone = shard.careful
        worker.shards.append(shard)
        shard.workers.append(name)
        self._shards[shard.id] = shard
        return Assign(name, shard.id, shard.careful, tuple(shard.quarantined.items()))

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
        for holder, worker, shard in self._prefetched(now):
            if not self._idle:
                return commands
            self._take_back(holder, worker, shard)
            commands += [Leave(holder, shard.id), self._assign_idle(shard, now)]
        if self._policy.speculate is None or not self._idle:
            return commands
        slow = self._pace.stragglers(self._workers.values(), now, self._policy.speculate)
        for _, shard in sorted(slow, key=lambda entry: -entry[0])[: len(self._idle)]:
            self.retries["straggler"] += 1
            shard.raced = True
            commands.append(self._assign_idle(shard, now))
        return commands

    def _prefetched(self, now: float) -> list[tuple[str, Worker, Shard]]:
        """(holder, its state, a shard it has not begun), those first that would wait longest."""
        found = [
            (self._pace.still_takes(worker, now), holder, worker, shard)
            for holder, worker in self._workers.items()
            if len(worker.shards) > 1
            for shard in worker.prefetched()
            if len(shard.workers) == 1
        ]
        found.sort(key=lambda entry: -entry[0])
        return [entry[1:] for entry in found]

    def _assign_idle(self, shard: Shard, now: float) -> Assign:
        helper = next(iter(self._idle))
        return self._assign(helper, self._workers[helper], shard, now)
