"""A store that is away or refuses: one event, not the fault of the shards that meet it."""

from __future__ import annotations

from pipeline.scheduler_events import (
    POLICY,
    assigned,
    committed,
    done,
    failed,
    one_at_a_time,
    scheduler,
    started,
    store_failed,
)

from data_engine.pipeline.commands import GiveUp
from data_engine.pipeline.events import ShardDone, SliceLost
from data_engine.pipeline.scheduler import Assign, Leave, Loss, Scheduler


def outlive(s: Scheduler, name: str, until: float, now: float = 0.0, work: float = 120.0) -> list[float]:
    """The store is away until then: the worker fails what it is given, after `work` s. Says when it was given some."""
    given = []
    while now < until:
        orders = assigned(s.tick(now))
        if orders:
            given.append(now)
            now += work
            for worker, shard in orders:
                assert worker == name
                assert s.report(name, [store_failed(shard)], now) == []
        now += 1
    return given


def test_an_outage_costs_no_shard_a_try_however_long_and_however_many_it_meets():
    s = scheduler("abcd", POLICY)
    s.worker_ready("v", "n", 0)  # a, b
    s.worker_ready("w", "n", 0)  # c, d
    for name, shard in [("v", "a"), ("v", "b"), ("w", "c"), ("w", "d")]:
        assert s.report(name, [store_failed(shard)], 1) == []
    s.worker_lost("w", Loss.PREEMPTED, "", 1)
    outlive(s, "v", until=3000)
    s.tick(3200)
    assert s.failed == {}
    assert [s._shards[shard].failures for shard in "abcd"] == [0, 0, 0, 0]
    s.report("v", [event for shard in "abcd" for event in (committed(shard, 1, final=True), ShardDone(shard))], 3300)
    s.tick(3300)
    s.report("v", [ShardDone(shard) for shard in "abcd"], 3301)
    assert s.finished
    assert s.done == 4
    assert s.retries["shard failed"] == 0
    assert s.retries["store away"] >= 4


def test_while_the_store_is_away_nothing_is_given_out_but_for_tries_after_growing_pauses():
    s = scheduler("ab", one_at_a_time())
    s.worker_ready("v", "n", 0)
    assert s.report("v", [store_failed("a")], 0) == []  # not b either
    assert s.worker_ready("idle", "n", 1) == []
    s.worker_lost("idle", Loss.PREEMPTED, "", 1)
    assert outlive(s, "v", until=2000, now=0, work=0) == [10, 30, 70, 150, *range(270, 2000, 120)]


def test_nor_is_anything_taken_over_from_those_that_still_work():
    s = scheduler("abc")
    s.worker_ready("v", "n", 0)  # a, b
    s.worker_ready("x", "n", 0)  # c
    s.worker_lost("x", Loss.DIED, "", 0)
    assert s.worker_ready("w", "n", 0) == [Assign("w", "c", careful=True)]
    s.report("w", [store_failed("c")], 1)
    assert s.tick(2) == []
    assert s.tick(11) == [Leave("v", "b"), Assign("w", "b")]


def test_all_that_fails_in_one_pause_is_one_event():
    s = scheduler("abcdef", one_at_a_time())
    for number in range(6):
        s.worker_ready(f"w{number}", "n", 0)
    for number in range(6):
        s.report(f"w{number}", [store_failed("abcdef"[number])], number)
    assert s.tick(9.9) == []
    assert len(assigned(s.tick(10))) == 6


def test_a_slice_that_anybody_commits_ends_it():
    s = scheduler("abc", one_at_a_time())
    s.worker_ready("v", "n", 0)  # a
    s.worker_ready("w", "n", 0)  # b
    s.report("v", [store_failed("a")], 5)
    assert s.store.away
    assert s.store.message == "the store says nothing"
    s.report("w", [started("b"), done("b"), committed("b", 1)], 6)
    assert not s.store.away
    assert assigned(s.tick(7)) == [("v", "c")] or assigned(s.tick(8)) == [("v", "a")]


def test_a_slice_lost_to_another_is_an_answer_too():
    s = scheduler("abc", one_at_a_time())
    s.worker_ready("v", "n", 0)
    s.worker_ready("w", "n", 0)
    s.report("v", [store_failed("a")], 5)
    s.report("w", [SliceLost("b", 0)], 6)
    assert not s.store.away


def test_a_shard_whose_own_objects_cannot_be_had_is_set_aside_while_others_get_through():
    s = scheduler("ab", one_at_a_time(shard_retries=3))
    s.worker_ready("good", "n", 0)  # a
    s.worker_ready("w", "n", 0)  # b
    now = 0.0
    for attempt in range(5):
        assert s.failed == {}, attempt
        s.report("w", [store_failed("b")], now)
        for _ in range(200):
            now += 1
            s.report("good", [done("a"), committed("a", 1)], now)
            if assigned(s.tick(now)) == [("w", "b")]:
                break
    assert s.failed == {"b": "the store says nothing"}


def test_its_own_commit_clears_a_shard_that_failed_for_its_store():
    s = scheduler("ab", one_at_a_time(shard_retries=0))
    s.worker_ready("good", "n", 0)  # a
    s.worker_ready("w", "n", 0)  # b
    for now in range(0, 1000, 100):
        s.report("w", [committed("b", 1), store_failed("b")], now)
        s.report("good", [done("a"), committed("a", 1)], now + 1)
        assert ("w", "b") in assigned(s.tick(now + 2)) + assigned(s.tick(now + 3))
    assert s.failed == {}


def test_a_store_that_takes_nothing_for_an_hour_ends_the_job():
    s = scheduler("ab", one_at_a_time())
    s.worker_ready("v", "n", 0)
    commands = s.report("v", [store_failed("a")], 0)
    now = 0
    while not any(isinstance(command, GiveUp) for command in commands):
        assert not s.finished
        now += 1
        for _, shard in assigned(s.tick(now)):
            now += 120
            commands = s.report("v", [store_failed(shard)], now)
    assert 3600 <= now <= 3600 + 240
    assert commands == [GiveUp(f"the store has taken nothing for {now / 60:.0f} minutes: the store says nothing")]
    assert s.finished
    assert s.failed == {}
    assert s.unfinished == 2


def test_an_output_that_refuses_ends_the_job_soon_and_blames_no_shard():
    s = scheduler("abcdef", one_at_a_time(give_up_after=3))
    s.worker_ready("v", "n", 0)
    s.worker_ready("w", "n", 0)
    assert s.report("v", [store_failed("a", lasting=True)], 0) == []
    assert s.report("w", [store_failed("b", lasting=True)], 1) == []
    ((name, shard), _) = assigned(s.tick(11))
    assert s.report(name, [store_failed(shard, lasting=True)], 12) == [
        GiveUp("the output cannot be used: the store says nothing")
    ]
    assert s.failed == {}


def test_an_output_that_refuses_one_worker_only_costs_that_one_its_shards():
    s = scheduler("abcdefgh", one_at_a_time(give_up_after=3))
    s.worker_ready("good", "n", 0)  # a
    s.worker_ready("bad", "m", 0)  # b
    left, now, held = 8, 0.0, {"good": "a", "bad": "b"}
    while not s.finished:
        now += 1
        commands = []
        if shard := held.pop("bad", None):
            commands += s.report("bad", [store_failed(shard, lasting=True)], now)
        if now % 10 == 0 and (shard := held.pop("good", None)):
            left -= 1
            commands += s.report("good", [done(shard), committed(shard, 1, final=True), ShardDone(shard)], now)
        commands += s.tick(now)
        assert not any(isinstance(command, GiveUp) for command in commands)
        held |= dict(assigned(commands))
    assert (s.done, s.failed, left) == (8, {}, 0)


def test_a_suspect_stays_one_through_an_outage():
    s = scheduler("a", one_at_a_time())
    s.worker_ready("v", "n", 0)
    s.report("v", [started("a")], 0)
    s.worker_lost("v", Loss.DIED, "", 1)
    assert s.worker_ready("w", "n", 2) == [Assign("w", "a", careful=True)]
    s.report("w", [store_failed("a")], 3)
    assert s.tick(13) + s.tick(14) == [Assign("w", "a", careful=True)]


def test_a_node_is_not_called_unfit_while_the_store_is_away():
    s = scheduler("abc", one_at_a_time(give_up_after=2))
    s.worker_ready("v", "n", 0)
    s.report("v", [store_failed("a")], 0)
    for number in range(5):
        assert s.worker_lost(f"w{number}", Loss.UNFIT, "the checkpoint cannot be had", 1, node=f"n{number}") == []
    assert s.excluded == {}
    s.report("v", [committed("a", 1)], 2)
    s.worker_lost("x", Loss.UNFIT, "no GPU", 3, node="bad")
    assert s.excluded == {"bad": "no GPU"}


def test_a_shard_that_cannot_be_read_is_charged_in_an_outage_too():
    s = scheduler("ab", one_at_a_time(shard_retries=0))
    s.worker_ready("v", "n", 0)
    s.worker_ready("w", "n", 0)
    s.report("v", [store_failed("a")], 0)
    s.report("w", [failed("b")], 1)
    assert s.failed == {"b": "cannot be read"}
