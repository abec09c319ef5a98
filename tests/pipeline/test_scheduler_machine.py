"""The scheduler under any order of events: nothing is lost, nothing is done twice, and it comes to an end."""

from __future__ import annotations

from collections import Counter

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from pipeline.simulated_workers import IMAGES_A_COMMIT, Blame, Died, SimulatedWorker, Store, TrueShard

from data_engine.pipeline.events import Event, ShardDone, ShardFailed, SliceCommitted, SliceLost
from data_engine.pipeline.scheduler import Assign, Command, Dismiss, GiveUp, Loss, Policy, Scheduler, ShardTask

CHARGED = (Loss.DIED, Loss.OUT_OF_MEMORY, Loss.TIMED_OUT, Loss.PREEMPTED)  # the last only if often
TRUE_SHARDS = st.builds(
    TrueShard,
    images=st.integers(1, 9),
    poison=st.sampled_from([frozenset()] * 6 + [frozenset({"0"}), frozenset({"1", "2"})]),
    kills_on_opening=st.sampled_from([False] * 15 + [True]),
    unreadable=st.sampled_from([False] * 15 + [True]),
)
PICK = st.integers(0, 1000)


class SchedulerMachine(RuleBasedStateMachine):
    @initialize(
        shards=st.lists(TRUE_SHARDS, min_size=1, max_size=10),
        workers=st.integers(0, 4),
        held=st.integers(1, 3),
        known=st.booleans(),
        speculate=st.sampled_from([None, 1.2]),
    )
    def begin(self, shards: list[TrueShard], workers: int, held: int, known: bool, speculate: float | None) -> None:
        self.store = Store({f"s{number}": shard for number, shard in enumerate(shards)})
        self.policy = Policy(
            max_in_flight=held, image_timeout=1000, give_up_after=10**6, store_patience=1e9, speculate=speculate
        )
        tasks = [ShardTask(name, shard.images if known else None) for name, shard in self.store.items()]
        self.scheduler = Scheduler(tasks, self.policy)
        self.workers: dict[str, SimulatedWorker] = {}
        self.zombies: dict[str, SimulatedWorker] = {}
        self.blame = Blame()
        self.failures: Counter[str] = Counter()  # said of a shard, and its own
        self.answers = 0  # that the store gave anybody
        self.excused: dict[str, int] = {}  # shard -> the answers when it last failed for the store
        self.shared: set[str] = set()  # nodes that had two workers at once
        self.killed: Counter[str] = Counter()  # workers, with this shard in the model as far as was heard
        self.unfit: dict[str, str] = {}
        self.done: set[str] = set()
        self.careful: set[tuple[str, str]] = set()  # (worker, shard)
        self.now = 0.0
        self.hired = 0
        for _ in range(workers):
            self.hire()

    # ---- the adapter ------------------------------------------------------------------------------------------------

    def obey(self, commands: list[Command]) -> None:
        for command in commands:
            assert not isinstance(command, GiveUp)
            if isinstance(command, Dismiss):
                self.blame.charge(command.worker, self.careful)
                self.zombies[command.worker] = self.workers.pop(command.worker)
                continue
            worker = self.workers[command.worker]
            if isinstance(command, Assign):
                assert not worker.draining
                assert command.shard not in self.done
                assert command.shard not in self.scheduler.failed
                if command.careful:
                    self.careful.add((command.worker, command.shard))
                for image, _ in command.quarantined:
                    blamed = self.blame.deaths[command.shard, image]
                    assert blamed >= self.policy.image_deaths, "an innocent image is left out"
                    assert (command.shard, image) in self.blame.careful, "it may have been another"
            worker.orders.append(command)

    def say(self, worker: SimulatedWorker) -> None:
        events, worker.unsaid = worker.unsaid, []
        if worker.name in self.workers:
            self.blame.hear(worker.name, events)
            for event in events:
                self.count(worker.name, event)
        self.done.update(event.shard for event in events if isinstance(event, ShardDone))
        self.obey(self.scheduler.report(worker.name, events, self.now))

    def count(self, name: str, event: Event) -> None:
        """What a worker of ours says of its shards and of the store."""
        if isinstance(event, (SliceCommitted, SliceLost)):
            self.answers += 1
        if isinstance(event, SliceCommitted):
            self.excused.pop(event.record.shard, None)
        held = {shard.id for shard in self.scheduler._workers[name].shards}
        if isinstance(event, ShardFailed) and event.shard in held:
            excused = event.of_store and self.excused.get(event.shard, self.answers) == self.answers
            self.failures[event.shard] += not excused
            if event.of_store:
                self.excused[event.shard] = self.answers

    def lose(self, worker: SimulatedWorker, loss: Loss) -> None:
        del self.workers[worker.name]
        beside_others = worker.node in self.shared and not self.scheduler._workers[worker.name].has_node
        if loss in CHARGED and not (loss is Loss.OUT_OF_MEMORY and beside_others):
            self.blame.charge(worker.name, self.careful)
            self.killed[self.in_model()[worker.name]] += 1
        self.obey(self.scheduler.worker_lost(worker.name, loss, "reason", self.now, worker.node))

    def in_model(self) -> dict[str, str]:
        return {name: shard or "" for name, _, shard, _ in self.scheduler.workers()}

    def act(self, worker: SimulatedWorker, speaks: bool = True) -> None:
        """One step, in a second. Death silences what was not said; a careful run has said all."""
        self.now += 1
        try:
            worker.step()
        except Died:
            if worker.urgent():
                self.say(worker)
            if worker.name in self.workers:
                self.lose(worker, Loss.DIED)
            else:
                del self.zombies[worker.name]
            return
        if speaks or worker.urgent():
            self.say(worker)

    def hire(self) -> None:
        worker = SimulatedWorker(f"w{self.hired}", f"n{self.hired // 2}", self.store)
        self.hired += 1
        if any(other.node == worker.node and not other.draining for other in self.workers.values()):
            self.shared.add(worker.node)
        self.workers[worker.name] = worker
        self.obey(self.scheduler.worker_ready(worker.name, worker.node, self.now))

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        before = self.in_model()
        commands = self.scheduler.tick(self.now)
        self.killed.update(before[command.worker] for command in commands if isinstance(command, Dismiss))
        self.obey(commands)

    # ---- what may happen --------------------------------------------------------------------------------------------

    @rule()
    @precondition(lambda self: len(self.workers) < 4)
    def a_worker_comes(self) -> None:
        self.hire()

    @rule(pick=PICK, steps=st.integers(1, 8), reads=st.booleans(), speaks=st.booleans())
    @precondition(lambda self: self.workers)
    def a_worker_works(self, pick: int, steps: int, reads: bool, speaks: bool) -> None:
        worker = some(self.workers, pick)
        for _ in range(steps):
            if reads:
                worker.read_orders()
            if worker.name in self.workers:
                self.act(worker, speaks)

    @rule(pick=PICK)
    @precondition(lambda self: self.zombies)
    def a_zombie_works(self, pick: int) -> None:
        self.act(some(self.zombies, pick))

    @rule(pick=PICK, loss=st.sampled_from(list(Loss)), zombie=st.booleans())
    @precondition(lambda self: self.workers)
    def a_worker_is_lost(self, pick: int, loss: Loss, zombie: bool) -> None:
        worker = some(self.workers, pick)
        if loss is Loss.UNFIT and not self.scheduler.store.away:
            self.unfit[worker.node] = "reason"
            self.failures[self.in_model()[worker.name]] += 1
        self.lose(worker, loss)
        if zombie:
            self.zombies[worker.name] = worker

    @rule(pick=PICK)
    @precondition(lambda self: self.workers)
    def a_worker_must_go(self, pick: int) -> None:
        worker = some(self.workers, pick)
        worker.draining = True
        self.obey(self.scheduler.worker_draining(worker.name))

    @rule(node=st.sampled_from(["n0", "n9", None]))
    def a_worker_never_comes_up(self, node: str | None) -> None:
        if node is not None and not self.scheduler.store.away:
            self.unfit[node] = "wrong torch"
        self.obey(self.scheduler.worker_lost("x", Loss.UNFIT, "wrong torch", self.now, node))

    @rule(pick=PICK, permanent=st.sampled_from([False, False, True]))
    @precondition(lambda self: self.workers)
    def a_shard_fails(self, pick: int, permanent: bool) -> None:
        worker = some(self.workers, pick)
        worker.read_orders()
        if worker.runs:
            self.failures[worker.runs[0].shard] += 100 * permanent
            worker.fail(permanent)
            self.say(worker)

    @rule(away=st.booleans(), refuses=st.booleans())
    def the_store_goes_or_comes_back(self, away: bool, refuses: bool) -> None:
        self.store.away, self.store.refuses = away, refuses

    @rule(pick=PICK, refuses=st.booleans())
    @precondition(lambda self: self.workers)
    def a_worker_finds_the_store_away(self, pick: int, refuses: bool) -> None:
        """Whatever it does for the others."""
        worker = some(self.workers, pick)
        worker.read_orders()
        before, self.store.refuses = self.store.refuses, refuses
        worker.give_up_on_the_store()
        self.store.refuses = before
        self.say(worker)

    @rule(pick=PICK, steps=st.integers(0, 8))
    @precondition(lambda self: self.workers)
    def another_driver_commits(self, pick: int, steps: int) -> None:
        """The shard that a worker is in the middle of, while it goes on."""
        worker = some(self.workers, pick)
        worker.read_orders()
        for step in range(2 + steps):
            if step == 2 and worker.runs:
                shard = self.store[worker.runs[0].shard]
                shard.committed = min(shard.images, shard.committed + IMAGES_A_COMMIT)
            if worker.name in self.workers:
                self.act(worker)

    @rule(seconds=st.sampled_from([1, 10, 60]))
    def the_last_shards_go_slowly(self, seconds: int) -> None:
        """All but one worker end what they hold, then time passes."""
        for worker in list(self.workers.values())[1:]:
            for _ in range(60):
                worker.read_orders()
                if worker.name in self.workers:
                    self.act(worker)
        self.pass_time(seconds)

    @rule(seconds=st.sampled_from([1, 10, 60, 2000]))
    def time_passes(self, seconds: int) -> None:
        self.pass_time(seconds)

    # ---- what must hold ---------------------------------------------------------------------------------------------

    @invariant()
    def every_shard_is_in_one_place(self) -> None:
        scheduler = self.scheduler
        waiting = list(scheduler._queue.ids())
        held = {shard.id for worker in scheduler._workers.values() for shard in worker.shards}
        places = Counter([*waiting, *held, *self.done, *scheduler.failed])
        assert places == Counter(self.store.keys())
        assert scheduler.done == len(self.done)
        assert scheduler.total == len(self.store)
        assert scheduler.waiting == len(waiting)
        assert scheduler.unfinished == len(waiting) + len(held)
        assert set(scheduler._shards) >= held

    @invariant()
    def what_is_done_is_in_the_store(self) -> None:
        for name in self.done:
            assert self.store[name].committed == self.store[name].images

    @invariant()
    def workers_hold_what_they_may(self) -> None:
        scheduler = self.scheduler
        assert scheduler._workers.keys() == self.workers.keys()
        runners: dict[str, list[str]] = {}
        for name, worker in scheduler._workers.items():
            assert len(worker.shards) <= self.policy.max_in_flight
            for shard in worker.shards:
                assert len(worker.shards) == 1 or (name, shard.id) not in self.careful, "a careful shard is not alone"
                runners.setdefault(shard.id, []).append(name)
            free = not worker.shards and not self.workers[name].draining
            assert (name in scheduler._idle) == free
        for shard_id, names in runners.items():
            assert sorted(scheduler._shards[shard_id].workers) == sorted(names)
            assert len(names) <= 2
        for shard in scheduler._shards.values():
            assert shard.workers or shard.id not in runners

    @invariant()
    def beside_a_worker_that_has_its_node_for_itself_nobody_works(self) -> None:
        at_work = [worker for worker in self.scheduler._workers.values() if worker.shards]
        for worker in at_work:
            neighbours = [other for other in at_work if other.node == worker.node and other is not worker]
            assert not (worker.has_node and neighbours)

    @invariant()
    def unfit_nodes_are_excluded(self) -> None:
        deadly = {node for node, why in self.scheduler.excluded.items() if "died on it" in why}
        assert self.scheduler.excluded.keys() - deadly == self.unfit.keys() - deadly
        assert deadly <= {f"n{number // 2}" for number in range(self.hired)}

    # ---- the end ----------------------------------------------------------------------------------------------------

    def teardown(self) -> None:
        """Faults cease, workers come: it must end, with every shard done or set aside for a reason that is true."""
        if not hasattr(self, "scheduler"):
            return
        self.store.away = False
        for worker in list(self.workers.values()):
            if worker.draining:
                self.lose(worker, Loss.PREEMPTED)
        for _ in range(2000):
            if self.scheduler.finished:
                break
            if len(self.workers) < 2:
                self.hire()
            for worker in list(self.workers.values()):
                worker.read_orders()
                self.act(worker)
            self.pass_time(1)
        assert self.scheduler.finished, "it does not end"
        self.every_shard_is_in_one_place()
        self.what_is_done_is_in_the_store()
        for shard, why in self.scheduler.failed.items():
            if why in ("cannot be read", "reason", "the store says nothing"):
                assert self.failures[shard] > self.policy.shard_retries
            else:
                assert self.killed[shard] >= self.policy.shard_deaths


def some(among: dict[str, SimulatedWorker], pick: int) -> SimulatedWorker:
    return list(among.values())[pick % len(among)]


TestScheduler = SchedulerMachine.TestCase
TestScheduler.settings = settings(
    max_examples=150, stateful_step_count=60, deadline=None, suppress_health_check=list(HealthCheck)
)
