"""Whose fault it is: the node's, the image's or the shard's."""

from __future__ import annotations

from pipeline.scheduler_events import assigned, committed, done, failed, one_at_a_time, scheduler, started

from data_engine.pipeline.events import ShardDone
from data_engine.pipeline.policy import Policy
from data_engine.pipeline.scheduler import Assign, GiveUp, Loss, Scheduler, ShardTask

# ---- bad nodes -------------------------------------------------------------------------------------------------------


def lives_on(s: Scheduler, name: str, node: str, image: str = "1", loss: Loss = Loss.DIED) -> str:
    """A worker that begins an image of the first shard it gets and is lost. Returns the shard."""
    shard = assigned(s.worker_ready(name, node, 0))[0][1]
    s.report(name, [started(shard, image)], 0)
    s.worker_lost(name, loss, "signal 11", 0)
    return shard


def test_a_node_on_which_all_die_costs_no_image_and_is_excluded():
    s = Scheduler([ShardTask(f"{number:03d}") for number in range(300)], Policy(speculate=None))
    todo = {f"good{number}": [] for number in range(9)}
    orders: list[Assign] = []
    for name in todo:
        orders += s.worker_ready(name, f"node of {name}", 0)
    for now in range(1, 500):
        if "bad" not in s.excluded:
            fresh = s.worker_ready(f"bad{now}", "bad", now)
            s.report(f"bad{now}", [started(fresh[0].shard, "first")], now)
            orders += s.worker_lost(f"bad{now}", Loss.DIED, "illegal instruction", now)
        for order in orders:
            assert not isinstance(order, GiveUp)
            assert order.quarantined == ()
            todo[order.worker].append(order.shard)
        orders = s.tick(now)
        for name, shards in todo.items():
            if shards:
                shard = shards.pop(0)
                orders += s.report(name, [started(shard), done(shard), ShardDone(shard)], now)
    assert s.excluded == {"bad": "5 workers in a row died on it before an image was done"}
    assert (s.done, s.failed) == (300, {})


def test_an_image_is_quarantined_once_it_has_killed_on_two_nodes():
    s = scheduler("a", one_at_a_time())
    s.worker_ready("elsewhere", "m", 0)
    s.report("elsewhere", [started("a", "poison")], 0)
    s.worker_lost("elsewhere", Loss.DIED, "", 0)
    s.worker_ready("busy", "n", 0)
    s.report("busy", [started("a", "other")], 0)
    s.worker_lost("busy", Loss.DIED, "", 0)  # a death of another image
    lives_on(s, "v", "m", "poison")
    assert s._shards["a"].quarantined == {}  # twice, but on one node
    lives_on(s, "w", "n", "poison")
    assert list(s._shards["a"].quarantined) == ["poison"]


def test_a_suspect_waits_for_a_worker_on_a_node_where_it_has_not_killed():
    s = scheduler("abcd", one_at_a_time())
    s.worker_ready("busy", "good", 0)  # a
    assert lives_on(s, "v", "bad") == "b"
    assert assigned(s.worker_ready("w", "bad", 1)) == [("w", "c")]  # not b
    assert s.report("w", [ShardDone("c")], 2) == [Assign("w", "d")]
    assert s.report("busy", [ShardDone("a")], 3) == [Assign("busy", "b", careful=True)]


def test_a_suspect_does_not_wait_once_there_is_no_other_node():
    s = scheduler("ab", one_at_a_time())
    s.worker_ready("busy", "good", 0)  # a
    assert lives_on(s, "v", "bad") == "b"
    assert s.worker_ready("w", "bad", 1) == []
    assert s.worker_draining("busy") == []
    assert s.tick(2) == [Assign("w", "b", careful=True)]


def test_workers_of_the_suspected_node_do_not_stop_fetching_in_place_of_those_that_may_have_the_suspect():
    s = scheduler("abcdefghij")
    s.worker_ready("v", "bad", 0)  # a, b
    s.worker_ready("other", "bad", 0)  # c, d
    s.worker_ready("good", "good", 0)  # e, f
    s.worker_lost("v", Loss.DIED, "", 1)
    assert assigned(s.report("other", [ShardDone("c")], 2)) == [("other", "g")]
    assert s.report("good", [ShardDone("e")], 2) == []
    assert s.report("good", [ShardDone("f")], 3) == [Assign("good", "a", careful=True)]


def test_what_died_on_an_excluded_node_is_forgiven():
    s = scheduler("abcdefg", one_at_a_time(node_deaths=3))
    s.worker_ready("busy", "good", 0)  # a
    assert [lives_on(s, f"w{number}", "bad") for number in range(3)] == ["b", "c", "d"]
    assert s.excluded == {"bad": "3 workers in a row died on it before an image was done"}
    assert [(s._shards[shard].deaths, s._shards[shard].suspects) for shard in "bcd"] == [(0, {})] * 3


def test_a_node_is_not_excluded_for_one_shard_nor_when_it_is_the_only_one():
    s = scheduler("ab", one_at_a_time(node_deaths=3, give_up_after=100))
    for number in range(7):
        assert lives_on(s, f"w{number}", "only") == "a"
    s.worker_ready("w", "second", 1)
    assert s.excluded == {}
    s = scheduler("abcdefgh", one_at_a_time(node_deaths=3, give_up_after=100))
    s.worker_ready("v", "only", 1)
    for number in range(6):
        s.worker_lost(f"w{number}", Loss.DIED, "", 1, node="only")
    assert s.excluded == {}


def test_an_image_done_on_a_node_clears_it():
    s = scheduler("abcdefghij", one_at_a_time(node_deaths=3))
    s.worker_ready("busy", "good", 0)  # a
    for number in range(3):
        lives_on(s, f"v{number}", "n")
        shard = assigned(s.worker_ready(f"w{number}", "n", 1))[0][1]
        s.report(f"w{number}", [started(shard), done(shard)], 1)
        lives_on(s, f"x{number}", "n")
    assert s.excluded == {}


def test_workers_that_worked_and_die_together_do_not_condemn_their_node():
    s = scheduler("abcdefghij", one_at_a_time(node_deaths=3))
    s.worker_ready("busy", "good", 0)
    for number in range(5):
        shard = assigned(s.worker_ready(f"w{number}", "n", 0))[0][1]
        s.report(f"w{number}", [started(shard), done(shard)], 1)
    for number in range(5):
        s.worker_lost(f"w{number}", Loss.DIED, "the store was away", 2)
    assert s.excluded == {}


def test_a_worker_that_never_came_up_on_an_unknown_node_excludes_none_and_counts():
    s = scheduler("a", one_at_a_time(give_up_after=3))
    losses = [s.worker_lost(f"w{number}", Loss.UNFIT, "no package", number) for number in range(3)]
    assert losses == [[], [], [GiveUp("3 workers in a row were lost before an image was done: no package (3x)")]]
    assert s.excluded == {}


def test_after_an_unknown_node_every_loss_still_counts():
    s = scheduler("ab", one_at_a_time(give_up_after=3))
    s.worker_ready("w", "n", 0)
    assert s.worker_lost("w", Loss.UNFIT, "the model fails", 0) == []
    assert s.excluded == {"n": "the model fails"}
    assert s.worker_lost("x", Loss.UNFIT, "no package", 1) == []
    assert [type(command) for command in s.worker_lost("y", Loss.UNFIT, "no package", 2)] == [GiveUp]


# ---- images and shards that kill -------------------------------------------------------------------------------------


def test_deaths_at_an_image_that_is_left_out_already_count_for_the_shard():
    s = scheduler("a", one_at_a_time(shard_deaths=4, give_up_after=100))
    for number in range(2):
        lives_on(s, f"v{number}", "n", "poison")
    assert s._shards["a"].deaths == 0
    for number in range(4):
        lives_on(s, f"w{number}", "n", "poison")
    assert s.failed == {"a": "it killed its worker 4 times, last: died (signal 11)"}


def test_no_image_is_left_out_for_what_may_have_been_another():
    s = scheduler("ab", one_at_a_time(image_deaths=1))
    assert lives_on(s, "v", "n", "innocent") == "a"  # others were being decoded
    (again,) = s.worker_ready("w", "n", 1)
    assert again == Assign("w", "a", careful=True)
    s.report("w", [started("a", "innocent"), done("a", "innocent"), started("a", "poison")], 1)
    s.worker_lost("w", Loss.DIED, "", 1)
    (again,) = s.worker_ready("x", "n", 2)
    assert again == Assign("x", "a", True, (("poison", "it killed its worker 1 time, last: died ()"),))


def test_two_runners_that_die_at_an_image_before_either_was_careful_are_no_proof():
    s = scheduler("ab", one_at_a_time(speculate=2.0), images=100)
    s.worker_ready("slow", "n", 0)
    s.worker_ready("quick", "n", 0)
    s.report("slow", [started("a"), done("a"), started("a", "2")], 100)
    s.report("quick", [started("b"), *[done("b")] * 100, ShardDone("b")], 100)
    assert s.tick(101) == [Assign("quick", "a")]
    s.report("quick", [started("a", "2")], 102)
    s.worker_lost("slow", Loss.DIED, "", 103)
    s.worker_lost("quick", Loss.DIED, "", 103)
    assert s.worker_ready("w", "n", 104) == [Assign("w", "a", careful=True)]


def test_a_shard_that_gets_on_between_its_losses_is_not_set_aside():
    s = scheduler("a", one_at_a_time(shard_deaths=2, shard_retries=1, retry_pause=1))
    s.worker_ready("w0", "n", 0)
    for number in range(10):
        name = f"w{number}"
        s.report(name, [done("a"), committed("a", 1), failed("a")], 10 * number)
        assert assigned(s.tick(10 * number + 5)) == [(name, "a")]
        s.report(name, [done("a"), committed("a", 1), started("a", str(number))], 10 * number + 6)
        s.worker_lost(name, Loss.DIED, "", 10 * number + 7)
        assert assigned(s.worker_ready(f"w{number + 1}", "n", 10 * number + 8)) == [(f"w{number + 1}", "a")]
    assert s.failed == {}


# ---- images that bring down nodes ------------------------------------------------------------------------------------


def test_an_image_with_which_node_after_node_goes_is_found():
    s = scheduler("ab")
    for number in range(6):
        assert lives_on(s, f"w{number}", f"n{number}", "bomb", Loss.PREEMPTED) == "a"
    s.worker_ready("other", "n", 0)  # b, a suspect like it
    (again,) = [c for c in s.worker_ready("w", "m", 0) if c.shard == "a"]
    assert again.quarantined == (("bomb", "it killed its worker 2 times, last: preempted (signal 11)"),)


def test_a_shard_with_which_node_after_node_goes_is_set_aside():
    s = scheduler("a", one_at_a_time(shard_deaths=3))
    for number in range(7):
        s.worker_ready(f"w{number}", f"n{number}", 0)
        s.worker_lost(f"w{number}", Loss.PREEMPTED, "gone", 0)
    assert s.failed == {"a": "it killed its worker 3 times, last: preempted (gone)"}


def test_nodes_that_were_announced_to_go_are_never_charged():
    s = scheduler("a", one_at_a_time())
    for number in range(20):
        assert s.worker_ready(f"w{number}", f"n{number}", 0) == [Assign(f"w{number}", "a")]
        s.worker_draining(f"w{number}")
        s.worker_lost(f"w{number}", Loss.PREEMPTED, "spot", 0)
