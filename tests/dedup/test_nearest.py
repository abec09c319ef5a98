"""The nearest hash of another set: as by comparing all with all, without comparing all with all."""

from __future__ import annotations

import time

import numpy as np
import pyarrow as pa
import pytest
from dedup.hash_sets import balanced, flipped

from data_engine.dedup.nearest import NEAREST, find_nearest

duckdb = pytest.importorskip("duckdb")


def found(mine, theirs, threshold, on_key=lambda done, keys: None):
    """{hash: (distance, nearest hash)}"""
    with duckdb.connect() as connection:
        connection.execute("set threads = 1")
        for name, hashes in (("mine", mine), ("theirs", theirs)):
            connection.register("hashes", pa.table({"h": np.unique(hashes)}))
            connection.execute(f"create table {name} as from hashes")
        connection.execute(f"create table nearest ({NEAREST})")
        find_nearest(connection, threshold, on_key)
        rows = connection.execute("select h, distance, of_h from nearest").fetchall()
        assert len({row[0] for row in rows}) == len(rows)
        return {h: (distance, of) for h, distance, of in rows}


def by_comparing_all(mine, theirs, threshold):
    theirs = np.unique(theirs)  # ascending, so that the first of the nearest is the smallest
    expected = {}
    for h in np.unique(mine):
        distances = np.unpackbits((theirs ^ h).view(np.uint8).reshape(-1, 8), axis=1).sum(1)
        if len(theirs) and distances.min() <= threshold:
            expected[int(h)] = (int(distances.min()), int(theirs[distances.argmin()]))
    return expected


def frames(seed, count, most):
    """Of one scene: each at most so many bits from it."""
    rng = np.random.default_rng(seed)
    return np.unique(flipped(rng, np.full(count, 0x0123_4567_89AB_CDEF, np.uint64), most))


@pytest.mark.parametrize("threshold", [0, 1, 2, 3, 4, 6, 8])
@pytest.mark.parametrize("most", [2, 5, 9])
def test_frames_of_one_scene_on_both_sides(threshold, most):
    rng = np.random.default_rng(most)
    mine = np.concatenate([frames(1, 400, most), balanced(rng, 100)])
    theirs = np.concatenate([frames(2, 400, most), balanced(rng, 100), flipped(rng, mine[-50:], 9)])
    assert found(mine, theirs, threshold) == by_comparing_all(mine, theirs, threshold)


def test_sets_without_a_near_pair_and_empty_ones():
    rng = np.random.default_rng(0)
    some, none = balanced(rng, 50), np.empty(0, np.uint64)
    assert found(some, balanced(rng, 50), 6) == {}
    assert found(some, none, 6) == found(none, some, 6) == found(none, none, 0) == {}


def test_extreme_hashes():
    mine = np.array([0, 2**64 - 1, 2**63], np.uint64)
    theirs = np.array([1, 2**64 - 2, 2**63, 2], np.uint64)
    assert found(mine, theirs, 6) == {0: (1, 1), 2**64 - 1: (1, 2**64 - 2), 2**63: (0, 2**63)}


def test_many_frames_on_both_sides_are_not_compared_all_with_all():
    """4 * 10^8 pairs, by each of the keys: that took 26 processor seconds, and takes half a one."""
    told = []
    began = time.process_time()
    rows = found(frames(1, 40_000, 4), frames(2, 40_000, 4), 6, lambda done, keys: told.append((done, keys)))
    assert time.process_time() - began < 6
    assert len(rows) > 20_000
    assert [done for done, _ in told] == list(range(len(told)))
    assert told[-1][1] == len(told)
