"""Nodes that run out of memory: Ray kills some worker there, so that no neighbour's image is blamed for it."""

from __future__ import annotations

import random
from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st
from pipeline.scheduler_events import POLICY, assigned, committed, done, one_at_a_time, scheduler, started
from pipeline.simulated_workers import Died, SimulatedWorker, Store, TrueShard

from data_engine.pipeline.events import ShardDone
from data_engine.pipeline.scheduler import Assign, Command, Loss, Policy, Scheduler, ShardTask


def test_on_a_node_of_its_own_a_worker_that_runs_out_of_memory_is_charged_like_one_that_dies():
    s = scheduler("ab", one_at_a_time())
    s.worker_ready("v", "n", 0)
    s.report("v", [started("a", "huge")], 0)
    s.worker_lost("v", Loss.OUT_OF_MEMORY, "", 1)
    assert s.worker_ready("w", "n", 2) == [Assign("w", "a", careful=True)]
    s.report("w", [started("a", "huge")], 2)
    s.worker_lost("w", Loss.OUT_OF_MEMORY, "", 3)
    (again,) = s.worker_ready("x", "n", 4)
    assert [image for image, _ in again.quarantined] == ["huge"]


def dies_beside(s: Scheduler, name: str, image: str = "1") -> str:
    """A worker of node n that runs out of memory at an image, while others work there. Returns the shard."""
    shard = assigned(s.worker_ready(name, "n", 0))[0][1]
    s.report(name, [started(shard, image)], 0)
    s.worker_lost(name, Loss.OUT_OF_MEMORY, "", 0)
    return shard


def test_beside_others_no_image_and_no_shard_is_charged():
    s = scheduler("abc", one_at_a_time(shard_deaths=1, image_deaths=1))
    s.worker_ready("neighbour", "n", 0)  # a
    assert [dies_beside(s, f"v{number}") for number in range(2)] == ["b", "b"]
    assert s.failed == {}
    assert s._shards["b"].quarantined == {}
    assert s._shards["b"].suspects == {}


def test_after_two_such_deaths_a_shard_waits_until_it_has_the_node_for_itself():
    s = scheduler("abcd", one_at_a_time())
    s.worker_ready("neighbour", "n", 0)  # a
    assert [dies_beside(s, f"v{number}", "huge") for number in range(2)] == ["b", "b"]
    assert assigned(s.worker_ready("w", "n", 1)) == [("w", "c")]
    assert assigned(s.report("w", [ShardDone("c")], 2)) == [("w", "d")]
    assert s.report("w", [ShardDone("d")], 3) == []  # b must wait: a is being done
    assert s.tick(4) == []
    assert s.report("neighbour", [ShardDone("a")], 5) == [Assign("neighbour", "b", careful=True)]
    assert s.tick(6) == []
    assert s.worker_ready("third", "n", 7) == []
    s.report("neighbour", [started("b", "huge")], 8)
    assert s.worker_lost("neighbour", Loss.OUT_OF_MEMORY, "", 9) == []  # w may be dead too
    assert s.tick(10) == [Assign("w", "b", careful=True)]
    s.report("w", [started("b", "huge")], 11)
    s.worker_lost("w", Loss.OUT_OF_MEMORY, "", 12)
    (again,) = s.tick(13)
    assert again.quarantined == (("huge", "it killed its worker 2 times, last: out of memory ()"),)
    assert not s._workers["third"].has_node  # the rest of b need not have it


def test_a_commit_gives_the_node_back_to_all():
    s = scheduler("abc", one_at_a_time())
    s.worker_ready("neighbour", "n", 0)  # a
    assert [dies_beside(s, f"v{number}") for number in range(2)] == ["b", "b"]
    s.report("neighbour", [committed("a", 1), ShardDone("a")], 1)  # gets c
    s.report("neighbour", [ShardDone("c")], 2)  # gets b
    s.worker_ready("w", "n", 3)
    (shard,) = [shard for name, _, shard, _ in s.workers() if name == "neighbour"]
    assert shard == "b"
    assert s.idle == 1
    s.report("neighbour", [started("b"), done("b"), committed("b", 1)], 4)
    assert not s._workers["neighbour"].has_node
    s.report("neighbour", [started("b", "2")], 5)
    s.worker_lost("neighbour", Loss.OUT_OF_MEMORY, "", 6)
    assert s._shards["b"].suspects == {}  # it was beside others again, as far as the scheduler can tell


def test_so_does_its_end():
    s = scheduler("abcd", one_at_a_time())
    s.worker_ready("neighbour", "n", 0)  # a
    assert [dies_beside(s, f"v{number}") for number in range(2)] == ["b", "b"]
    for shard in "acd":
        s.report("neighbour", [ShardDone(shard)], 1)  # gets b at last
    s.worker_ready("w", "n", 2)
    assert s._workers["neighbour"].has_node
    s.report("neighbour", [ShardDone("b")], 3)  # by whomever: it committed nothing
    assert not s._workers["neighbour"].has_node


def test_an_idle_worker_helps_nobody_on_a_node_that_another_has_for_itself():
    s = scheduler("abcdef", POLICY)
    s.worker_ready("far", "m", 0)  # a, b
    s.worker_ready("neighbour", "n", 0)  # c, d
    s.worker_ready("v", "n", 0)  # e, f
    s._shards["e"].crowded = 1
    s.worker_lost("v", Loss.OUT_OF_MEMORY, "", 1)
    for shard in "cd":
        s.report("neighbour", [ShardDone(shard)], 2)
    s.tick(3)
    s._shards["e"].nodes.clear()
    held = {name: shard for name, _, shard, _ in s.workers()}
    while held["neighbour"] != "e":
        s.report("neighbour", [ShardDone(held["neighbour"])], 4)
        s.tick(5)
        held = {name: shard for name, _, shard, _ in s.workers()}
    s.worker_ready("w", "n", 6)
    assert s.tick(7) == []  # what `far` has not begun is not taken over by w


@settings(max_examples=100)
@given(
    st.lists(st.integers(1, 6), min_size=3, max_size=14),
    st.integers(1, 2),
    st.integers(2, 4),
    st.integers(1, 2),
    st.integers(0, 10**6),
)
def test_only_images_that_fill_the_memory_are_left_out_whoever_is_killed_for_it(
    lengths: list[int], nodes: int, slots: int, held: int, seed: int
):
    chance = random.Random(seed)
    store = Store(
        (f"s{number}", TrueShard(images, frozenset(str(i) for i in range(images) if chance.random() < 0.15)))
        for number, images in enumerate(lengths)
    )
    eaters = {(name, image) for name, shard in store.items() for image in shard.poison}
    many = 10**6
    policy = Policy(max_in_flight=held, give_up_after=many, node_deaths=many, shard_deaths=many)
    cluster = MemoryHungry(store, policy, nodes, slots, chance)
    cluster.run()
    assert cluster.left_out == eaters
    assert cluster.scheduler.failed == {}
    assert all(shard.committed == shard.images for shard in store.values())


class MemoryHungry:
    """Nodes on which an image that fills the memory has one worker after the other killed, in any order, itself too."""

    def __init__(self, store: Store, policy: Policy, nodes: int, slots: int, chance: random.Random) -> None:
        self.store, self.chance, self.nodes, self.slots = store, chance, nodes, slots
        self.scheduler = Scheduler([ShardTask(name, shard.images) for name, shard in store.items()], policy)
        self.workers: dict[str, SimulatedWorker] = {}
        self.left_out: set[tuple[str, str]] = set()
        self.deaths: Counter[str] = Counter()
        self.hired = 0
        self.now = 0.0

    def run(self) -> None:
        for _ in range(20_000):
            if self.scheduler.finished:
                return
            self.now += 1
            self.hire()
            self.obey(self.scheduler.tick(self.now))
            worker = self.chance.choice(list(self.workers.values()))
            worker.read_orders()
            try:
                worker.step()
            except Died:
                self.fill(worker)
            else:
                self.say(worker)
        raise AssertionError(f"it does not end: {self.deaths}")

    def hire(self) -> None:
        """Now and then, on a node with room: workers take their time to come back."""
        places = [f"n{node}" for node in range(self.nodes)] * self.slots
        for worker in self.workers.values():
            places.remove(worker.node)
        if places and (not self.workers or self.chance.random() < 0.3):
            worker = SimulatedWorker(f"w{self.hired}", self.chance.choice(places), self.store)
            self.hired += 1
            self.workers[worker.name] = worker
            self.obey(self.scheduler.worker_ready(worker.name, worker.node, self.now))

    def fill(self, eater: SimulatedWorker) -> None:
        self.say(eater)
        there = [worker for worker in self.workers.values() if worker.node == eater.node]
        self.chance.shuffle(there)
        killed = there[: there.index(eater) + 1]
        for worker in killed:
            self.say(worker)
        self.chance.shuffle(killed)  # the driver hears of them in any order
        for worker in killed:
            del self.workers[worker.name]
            self.deaths[worker.node] += 1
            self.obey(self.scheduler.worker_lost(worker.name, Loss.OUT_OF_MEMORY, "", self.now, worker.node))

    def say(self, worker: SimulatedWorker) -> None:
        events, worker.unsaid = worker.unsaid, []
        self.obey(self.scheduler.report(worker.name, events, self.now))

    def obey(self, commands: list[Command]) -> None:
        for command in commands:
            if isinstance(command, Assign):
                self.left_out |= {(command.shard, image) for image, _ in command.quarantined}
            self.workers[command.worker].orders.append(command)
