"""Shards given out, tried again, taken over and run twice; losses of workers are in test_scheduler_losses.py."""

from __future__ import annotations

from dataclasses import replace

import pytest
from pipeline.scheduler_events import POLICY, assigned, committed, done, failed, one_at_a_time, scheduler, started

from data_engine.pipeline.events import ShardDone, SliceLost
from data_engine.pipeline.scheduler import Assign, Leave, Loss, Policy, Scheduler, ShardTask

# ---- the good way ----------------------------------------------------------------------------------------------------


def test_a_worker_gets_as_much_as_it_may_hold_and_more_when_one_is_done():
    s = scheduler("abc")
    assert assigned(s.worker_ready("w", "n", 0)) == [("w", "a"), ("w", "b")]
    assert s.waiting == 1
    assert assigned(s.report("w", [ShardDone("a")], 1)) == [("w", "c")]
    assert s.report("w", [ShardDone("b"), ShardDone("c")], 2) == []
    assert s.finished
    assert (s.done, s.unfinished, s.idle, s.failed) == (3, 0, 1, {})


def test_long_shards_go_first_so_that_none_is_left_alone_at_the_end():
    tasks = [ShardTask("short", 10), ShardTask("unknown"), ShardTask("long", 99), ShardTask("unknown too")]
    s = Scheduler(tasks, replace(POLICY, max_in_flight=4))
    order = [shard for _, shard in assigned(s.worker_ready("w", "n", 0))]
    assert order == ["long", "short", "unknown", "unknown too"]


def test_nothing_to_do_is_finished():
    assert Scheduler([], POLICY).finished


def test_a_shard_twice_in_the_plan_is_refused():
    with pytest.raises(ValueError, match="same id"):
        scheduler("aa")


def test_display_shows_the_shard_in_the_model_and_its_images():
    s = scheduler("ab")
    s.worker_ready("w", "n", 0)
    s.report("w", [started("a"), done("a"), started("a", "2")], 1)
    assert list(s.workers()) == [("w", "n", "a", 1)]
    s.report("w", [done("a", "2"), started("b")], 2)  # b's first image, while a's last commit is under way
    assert list(s.workers()) == [("w", "n", "b", 0)]
    s.report("w", [ShardDone("a")], 3)
    assert list(s.workers()) == [("w", "n", "b", 0)]


def test_a_second_greeting_changes_nothing():
    s = scheduler("abc")
    s.worker_ready("w", "n", 0)
    assert s.worker_ready("w", "n", 1) == []
    assert assigned(s.report("w", [ShardDone("a")], 1)) == [("w", "c")]


# ---- shards that cannot be read --------------------------------------------------------------------------------------


def test_a_failed_shard_is_tried_elsewhere_after_growing_pauses_then_set_aside():
    s = scheduler("a", one_at_a_time(shard_retries=2, retry_pause=5))
    s.worker_ready("v", "n", 0)
    s.worker_ready("w", "n", 0)
    assert s.report("v", [failed("a")], 10) == []
    assert s.tick(14.9) == []
    assert assigned(s.tick(15)) == [("w", "a")]
    s.report("w", [failed("a")], 20)
    assert s.tick(29.9) == []
    assert assigned(s.tick(30)) == [("v", "a")]
    s.report("v", [failed("a")], 31)
    assert s.failed == {"a": "cannot be read"}
    assert s.finished
    assert s.retries["shard failed"] == 2


def test_a_failed_shard_comes_back_to_the_only_worker_there_is():
    s = scheduler("a", one_at_a_time())
    s.worker_ready("w", "n", 0)
    s.report("w", [failed("a")], 0)
    assert assigned(s.tick(5)) == [("w", "a")]


def test_a_busy_cluster_does_not_starve_a_shard_that_failed():
    s = scheduler("abcdef", one_at_a_time())
    s.worker_ready("v", "n", 0)  # a
    s.worker_ready("w", "n", 0)  # b
    s.report("v", [failed("a")], 0)  # gets c
    s.tick(5)
    assert assigned(s.report("v", [ShardDone("c")], 6)) == [("v", "d")]  # not the one that failed here
    assert assigned(s.report("w", [ShardDone("b")], 6)) == [("w", "a")]


def test_a_failed_shard_does_not_wait_for_others_that_are_busy():
    s = scheduler("ab", one_at_a_time())
    s.worker_ready("v", "n", 0)
    s.worker_ready("busy", "n", 0)
    s.report("v", [failed("a")], 0)
    assert s.tick(5) == []  # another might take it
    assert assigned(s.tick(6)) == [("v", "a")]


def test_a_permanent_failure_is_not_tried_again():
    s = scheduler("ab", one_at_a_time())
    s.worker_ready("w", "n", 0)
    assert assigned(s.report("w", [failed("a", permanent=True)], 0)) == [("w", "b")]
    assert s.failed == {"a": "cannot be read"}
    s.report("w", [ShardDone("b")], 1)
    assert s.finished


def test_failure_of_a_shard_that_is_no_longer_the_workers_is_ignored():
    s = scheduler("a", one_at_a_time())
    s.worker_ready("v", "n", 0)
    s.worker_lost("v", Loss.PREEMPTED, "", 0)
    assert s.report("v", [failed("a", permanent=True)], 1) == []
    assert s.failed == {}


# ---- others at the same job ------------------------------------------------------------------------------------------


def test_a_shard_that_another_driver_commits_is_left_to_it_for_a_while_and_the_rest_is_shuffled():
    shards = [f"{number:02d}" for number in range(40)]
    s = Scheduler([ShardTask(shard) for shard in shards], one_at_a_time(foreign_pause=30))
    s.worker_ready("w", "n", 0)
    order = []
    commands = s.report("w", [SliceLost("00", 0)], 1)
    while commands:
        ((_, shard),) = assigned(commands)
        order.append(shard)
        s.tick(2 if len(order) < 20 else 31)
        commands = s.report("w", [ShardDone(shard)], 31)
    assert sorted(order) == shards
    assert order[-1] == "00"  # looked at last
    assert order[:-1] != shards[1:]


def test_a_slice_lost_to_a_worker_of_ours_costs_no_pause():
    s = scheduler("a", one_at_a_time())
    s.worker_ready("zombie", "n", 0)
    s.worker_lost("zombie", Loss.PREEMPTED, "", 0)
    s.worker_ready("w", "n", 1)
    assert assigned(s.report("w", [SliceLost("a", 0)], 2)) == [("w", "a")]
    assert s.report("w", [SliceLost("a", 1)], 3) == []  # once more: somebody else
    assert assigned(s.tick(33)) == [("w", "a")]


def test_a_zombie_that_finishes_its_shard_after_all_saves_the_second_run():
    s = scheduler("ab", one_at_a_time())
    s.worker_ready("zombie", "n", 0)
    s.worker_lost("zombie", Loss.DIED, "", 1)
    s.worker_ready("w", "n", 2)  # a again
    s.worker_lost("w", Loss.PREEMPTED, "", 3)
    assert s.report("zombie", [started("a"), ShardDone("a")], 4) == []
    assert assigned(s.worker_ready("x", "n", 5)) == [("x", "b")]
    s.report("x", [ShardDone("b")], 6)
    assert s.finished
    assert s.done == 2


def test_a_zombie_finishes_what_another_has_or_what_waits_for_its_retry():
    s = scheduler("ab", one_at_a_time())
    s.worker_ready("zombie", "n", 0)
    s.worker_lost("zombie", Loss.PREEMPTED, "", 1)
    s.worker_ready("w", "n", 2)
    assert s.report("zombie", [ShardDone("a")], 3) == [Leave("w", "a"), Assign("w", "b")]
    s.report("w", [failed("b")], 4)
    s.report("w", [ShardDone("b")], 5)
    assert s.tick(100) == []
    assert s.finished


def test_a_shard_set_aside_that_is_done_after_all_counts_as_done():
    s = scheduler("a", one_at_a_time(shard_deaths=1))
    s.worker_ready("zombie", "n", 0)
    s.worker_lost("zombie", Loss.TIMED_OUT, "", 1)
    assert list(s.failed) == ["a"]
    s.report("zombie", [ShardDone("a"), ShardDone("a")], 2)
    assert (s.done, s.failed, s.finished) == (1, {}, True)


# ---- the tail --------------------------------------------------------------------------------------------------------


def test_an_idle_worker_takes_over_what_another_has_not_begun():
    s = scheduler("ab")
    s.worker_ready("v", "n", 0)
    s.worker_ready("w", "n", 0)
    assert s.idle == 1
    assert s.tick(1) == [Leave("v", "b"), Assign("w", "b")]
    assert s.tick(2) == []


def test_what_only_waits_for_its_last_commit_is_not_taken_over():
    s = scheduler("ab")
    s.worker_ready("v", "n", 0)
    s.report("v", [started("a"), done("a"), started("b")], 1)
    s.worker_ready("w", "n", 1)
    assert s.tick(2) == []


def straggling(policy: Policy) -> Scheduler:
    """`slow` has done 2 of a's 100 images in 100 s; others need a second for each."""
    s = scheduler("ab", replace(policy, max_in_flight=1), images=100)
    s.worker_ready("slow", "n", 0)
    s.worker_ready("quick", "n", 0)
    s.report("slow", [started("a"), done("a"), done("a"), started("a", "3")], 100)
    s.report("quick", [started("b"), *[done("b")] * 100, ShardDone("b")], 100)
    return s


def test_a_straggler_gets_a_second_runner_and_whoever_is_later_leaves():
    s = straggling(Policy(speculate=2.0))
    assert s.tick(101) == [Assign("quick", "a")]
    s.worker_ready("idle", "n", 101)
    assert s.tick(102) == []  # one is enough
    assert s.report("quick", [ShardDone("a")], 200) == [Leave("slow", "a")]
    assert s.finished
    assert s.retries == {"straggler": 1}


def test_the_straggler_may_win():
    s = straggling(Policy(speculate=2.0))
    s.tick(101)
    assert s.report("slow", [ShardDone("a")], 150) == [Leave("quick", "a")]
    assert s.finished


def test_of_two_runners_one_may_fail_or_die_without_a_retry():
    s = straggling(Policy(speculate=2.0))
    s.tick(101)
    s.report("slow", [failed("a", permanent=True)], 102)
    assert (s.waiting, s.failed) == (0, {})
    s.report("quick", [ShardDone("a")], 103)
    assert s.finished
    s = straggling(Policy(speculate=2.0))
    s.tick(101)
    s.worker_lost("quick", Loss.DIED, "", 102)
    assert (s.waiting, s.unfinished) == (0, 1)


def test_no_second_runner_where_it_would_not_be_sooner_or_is_not_wanted():
    assert straggling(Policy(speculate=None)).tick(101) == []
    s = straggling(Policy(speculate=2.0))
    s.report("slow", [*[done("a")] * 90], 500)
    assert s.tick(501) == []  # eight images to go at five seconds each: a new runner would have to do all hundred


def test_what_is_committed_need_not_be_done_by_a_second_runner():
    s = straggling(Policy(speculate=2.0))
    s.report("slow", [*[done("a")] * 88, committed("a", 90)], 1000)
    assert s.tick(1001) == [Assign("quick", "a")]  # ten images to go, at ten seconds each


# ---- stopping --------------------------------------------------------------------------------------------------------


def test_stop_gives_nothing_out_and_waits_for_those_at_work():
    s = scheduler("abcdef")
    s.worker_ready("v", "n", 0)
    s.worker_ready("w", "n", 0)
    s.stop()
    assert s.report("v", [ShardDone("a")], 1) == []
    assert s.worker_ready("x", "n", 1) == []
    assert s.tick(2) == []
    s.worker_lost("v", Loss.STOPPED, "", 3)
    assert not s.finished
    assert s.worker_lost("w", Loss.STOPPED, "", 3) == []
    assert s.finished
    assert (s.done, s.unfinished, s.retries) == (1, 5, {})
