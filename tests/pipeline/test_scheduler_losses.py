"""Images that kill, nodes that go, set-ups on which nothing works: what the scheduler makes of lost workers."""

from __future__ import annotations

from dataclasses import replace

from pipeline.scheduler_events import POLICY, assigned, committed, done, failed, one_at_a_time, scheduler, started

from data_engine.pipeline.events import ShardDone, SliceLost
from data_engine.pipeline.scheduler import Assign, Dismiss, GiveUp, Leave, Loss

# ---- images that kill ------------------------------------------------------------------------------------------------


def test_a_poison_image_is_found_and_left_out_and_the_shards_beside_it_lose_nothing():
    s = scheduler("abc")
    s.worker_ready("v", "n", 0)  # a, b
    s.report("v", [started("a", "0"), done("a", "0"), started("a", "poison")], 1)
    s.worker_lost("v", Loss.DIED, "signal 11", 2)
    # both are suspects: each runs alone
    assert s.worker_ready("w", "n", 3) == [Assign("w", "a", careful=True)]
    s.report("w", [started("a", "0"), done("a", "0"), started("a", "poison")], 4)
    s.worker_lost("w", Loss.DIED, "signal 11", 5)
    assert s.worker_ready("x", "n", 6) == [Assign("x", "b", careful=True)]
    (again,) = s.worker_ready("y", "n", 6)
    assert again == Assign("y", "a", True, (("poison", "it killed its worker 2 times, last: died (signal 11)"),))
    s.report("x", [ShardDone("b")], 7)
    s.report("y", [ShardDone("a")], 7)
    s.report("x", [ShardDone("c")], 8)
    assert s.finished
    assert s.done == 3


def test_an_image_that_was_in_the_model_when_something_else_killed_is_cleared_once_it_is_done():
    s = scheduler("ab")
    s.worker_ready("v", "n", 0)
    s.report("v", [started("a", "innocent")], 1)
    s.worker_lost("v", Loss.DIED, "decoder of another image", 2)
    s.worker_ready("w", "n", 3)
    s.report("w", [started("a", "innocent"), done("a", "innocent"), started("a", "poison")], 4)
    s.worker_lost("w", Loss.DIED, "", 5)
    s.worker_ready("other", "n", 6)  # b
    assert s.worker_ready("x", "n", 6) == [Assign("x", "a", careful=True)]
    s.report("x", [started("a", "innocent")], 7)
    s.worker_lost("x", Loss.DIED, "", 8)  # its second death in all, but the first since it was cleared
    assert s.worker_ready("y", "n", 9) == [Assign("y", "a", careful=True)]


def test_an_image_of_a_shard_that_is_no_longer_the_workers_blames_none_of_its_own():
    s = scheduler("abc")
    s.worker_ready("v", "n", 0)  # a, b
    s.report("v", [started("a"), SliceLost("a", 0)], 1)  # gets c
    s.report("v", [started("a", "2")], 2)  # was under way
    s.worker_lost("v", Loss.DIED, "", 3)
    assert s._shards["b"].suspects == {}
    assert list(s._shards["b"].quarantined) == []


def test_a_suspect_gets_a_worker_of_its_own_though_all_are_busy():
    s = scheduler("abcdefghij")
    s.worker_ready("v", "n", 0)  # a, b
    s.worker_ready("w", "n", 0)  # c, d
    s.worker_lost("v", Loss.OUT_OF_MEMORY, "", 1)
    assert s.report("w", [ShardDone("c")], 2) == []  # it takes no other, to be free for a
    assert s.report("w", [ShardDone("d")], 3) == [Assign("w", "a", careful=True)]
    assert s.report("w", [ShardDone("a")], 4) == [Assign("w", "b", careful=True)]
    assert assigned(s.report("w", [ShardDone("b")], 5)) == [("w", "e"), ("w", "f")]


def test_a_shard_that_kills_with_no_image_to_blame_is_set_aside():
    s = scheduler("ab", one_at_a_time(shard_deaths=3))
    s.worker_ready("good", "n", 0)  # a
    for number in range(3):
        assert s.worker_ready(f"w{number}", "n", 1)[0].shard == "b"
        s.report("good", [done("a")], 1)
        assert not any(isinstance(c, GiveUp) for c in s.worker_lost(f"w{number}", Loss.DIED, "on opening", 2))
    assert s.failed == {"b": "it killed its worker 3 times, last: died (on opening)"}
    s.report("good", [ShardDone("a")], 3)
    assert s.finished


def test_a_silent_worker_is_dismissed_and_its_image_blamed():
    s = scheduler("ab", one_at_a_time(image_timeout=100, image_deaths=1))
    s.worker_ready("v", "n", 0)
    s.report("v", [started("a", "hangs")], 10)
    assert s.tick(105) == []
    assert s.tick(112) == [Dismiss("v", "no sign of life for 100 s, at image hangs")]
    assert s.worker_lost("v", Loss.DIED, "killed", 113) == []  # the adapter may say so
    assert s.retries == {"timed out": 1}
    assert s.worker_ready("w", "n", 114) == [Assign("w", "a", careful=True)]
    s.report("w", [started("a", "hangs")], 115)
    assert [type(command) for command in s.tick(300)] == [Dismiss]
    (again,) = s.worker_ready("x", "n", 301)
    assert [image for image, _ in again.quarantined] == ["hangs"]


def test_a_dismissed_worker_is_not_counted_twice():
    s = scheduler("ab", one_at_a_time(image_timeout=100, give_up_after=2))
    s.worker_ready("v", "n", 0)
    assert [type(command) for command in s.tick(200)] == [Dismiss]
    assert s.worker_lost("v", Loss.DIED, "killed", 201) == []
    s.worker_ready("w", "n", 202)
    assert [type(command) for command in s.worker_lost("w", Loss.DIED, "", 203)] == [GiveUp]


def test_several_images_of_a_shard_may_kill():
    s = scheduler("a", one_at_a_time(shard_deaths=3))
    for number, image in enumerate(["1", "1", "2", "2"]):
        s.worker_ready(f"w{number}", "n", 0)
        s.report(f"w{number}", [done("a", "0"), started("a", image)], 1)
        s.worker_lost(f"w{number}", Loss.DIED, "", 2)
    (again,) = s.worker_ready("w", "n", 3)
    assert [image for image, _ in again.quarantined] == ["1", "2"]


def test_a_worker_that_is_lost_while_idle_is_given_nothing():
    s = scheduler("a", one_at_a_time())
    s.worker_ready("v", "n", 0)
    s.worker_ready("idle", "n", 0)
    assert s.worker_lost("idle", Loss.PREEMPTED, "", 1) == []
    assert s.idle == 0
    assert s.worker_lost("v", Loss.PREEMPTED, "", 1) == []
    assert s.waiting == 1


def test_a_worker_with_nothing_to_do_may_be_silent():
    s = scheduler("a", one_at_a_time(image_timeout=100))
    s.worker_ready("v", "n", 0)
    s.worker_ready("idle", "n", 0)
    s.report("v", [ShardDone("a")], 1)
    assert s.tick(1000) == []


# ---- nodes that go ---------------------------------------------------------------------------------------------------


def test_preemption_is_charged_to_nobody():
    s = scheduler("ab")
    for number in range(50):
        commands = s.worker_ready(f"w{number}", "n", number)
        assert commands == [Assign(f"w{number}", "a"), Assign(f"w{number}", "b")]
        s.report(f"w{number}", [started("a"), done("a"), committed("a", 1), started("a", "2")], number)
        assert s.worker_lost(f"w{number}", Loss.PREEMPTED, "spot", number) == []
    assert s.retries == {"preempted": 100}


def test_a_draining_worker_finishes_what_is_in_its_model_and_gets_nothing_new():
    s = scheduler("abc")
    s.worker_ready("v", "n", 0)  # a, b
    s.report("v", [started("a")], 0)
    assert s.worker_draining("v") == [Leave("v", "b")]
    assert s.worker_draining("v") == []
    assert s.report("v", [ShardDone("a")], 1) == []
    assert assigned(s.worker_ready("w", "n", 2)) == [("w", "b"), ("w", "c")]
    assert s.worker_lost("v", Loss.PREEMPTED, "", 3) == []
    s.report("w", [ShardDone("b"), ShardDone("c")], 4)
    assert s.finished


def test_what_a_draining_worker_shares_with_another_is_not_given_out_a_third_time():
    s = scheduler("ab", replace(POLICY, speculate=2.0), images=10)
    s.worker_ready("quick", "n", 0)  # a, b
    s.worker_ready("help", "n", 0)
    assert s.tick(1) == [Leave("quick", "b"), Assign("help", "b")]
    s.report("help", [started("b"), *[done("b")] * 10, ShardDone("b")], 11)
    assert s.tick(100) == [Assign("help", "a")]
    s.report("quick", [failed("a")], 101)
    s.worker_draining("help")
    assert s.waiting == 0
    s.report("help", [ShardDone("a")], 102)
    assert s.finished


def test_an_unfit_node_is_excluded_and_counts_once_however_many_workers_it_had():
    s = scheduler("a", one_at_a_time())
    for number in range(20):
        assert s.worker_lost(f"w{number}", Loss.UNFIT, "no GPU", 0, node="bad") == []
    assert s.excluded == {"bad": "no GPU"}
    assert s.worker_ready("w", "good", 1) == [Assign("w", "a")]


def test_a_shard_on_which_every_node_seems_unfit_is_set_aside_before_none_is_left():
    s = scheduler("ab", one_at_a_time(shard_retries=2))
    s.worker_ready("good", "n", 0)  # a
    for number in range(3):
        assert s.worker_ready(f"w{number}", f"n{number}", 0) == [Assign(f"w{number}", "b")]
        s.worker_lost(f"w{number}", Loss.UNFIT, "the model fails", 1)
    assert s.failed == {"b": "the model fails"}


# ---- giving up -------------------------------------------------------------------------------------------------------


def test_gives_up_when_workers_die_before_anything_is_done():
    s = scheduler("abcdefgh", one_at_a_time(give_up_after=3))
    for number in range(3):
        s.worker_ready(f"w{number}", "n", 0)
        commands = s.worker_lost(f"w{number}", Loss.DIED, "CUDA error", 1)
    assert commands == [
        GiveUp("3 workers in a row were lost before an image was done: CUDA error (3x)"),
    ]
    assert s.finished
    assert s.unfinished == 8


def test_gives_up_when_workers_never_come_up():
    s = scheduler("a", one_at_a_time(give_up_after=3))
    losses = [s.worker_lost("w", Loss.UNFIT, "wrong torch", 1, node=f"n{number}") for number in range(3)]
    assert [len(commands) for commands in losses] == [0, 0, 1]
    assert s.excluded == {"n0": "wrong torch", "n1": "wrong torch", "n2": "wrong torch"}


def test_is_more_patient_once_an_image_was_done_and_while_most_workers_live():
    s = scheduler("abcdefghijklmnop", one_at_a_time(give_up_after=1))
    for number in range(10):
        s.worker_ready(f"w{number}", "n", 0)
    assert [c for n in range(4) for c in s.worker_lost(f"w{n}", Loss.DIED, "", 1) if isinstance(c, GiveUp)] == []
    s.report("w9", [done(next(shard for name, _, shard, _ in s.workers() if name == "w9"))], 2)
    for number in (5, 6, 7):
        s.worker_lost(f"w{number}", Loss.DIED, "", 3)
    assert not s.finished
    commands = s.worker_lost("w8", Loss.DIED, "", 3)
    assert any(isinstance(command, GiveUp) for command in commands)


def test_gives_up_when_no_shard_can_be_read():
    s = scheduler("abcdefgh", one_at_a_time(give_up_after=3))
    s.worker_ready("w", "n", 0)
    for shard in "abc":
        commands = s.report("w", [failed(shard, permanent=True)], 1)
    assert commands == [GiveUp("3 shards in a row could not be done, the last: cannot be read")]
    assert s.finished


def test_a_shard_done_in_between_makes_it_start_counting_again():
    s = scheduler("abcdefghijkl", one_at_a_time(give_up_after=1))
    s.worker_ready("w", "n", 0)
    for shard in "abcdefgh":
        event = ShardDone(shard) if shard in "aeh" else failed(shard, permanent=True)
        assert not any(isinstance(command, GiveUp) for command in s.report("w", [event], 1))
