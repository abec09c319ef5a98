"""An epoch's order: every entry exactly once over any world, the same every time, and entered anywhere."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_engine.train.data.order import shuffled_stretch, stretch

SIZES = st.lists(st.integers(0, 40), max_size=8)
WINDOW = st.none() | st.integers(1, 50)


def order(sizes, **how):
    return [(unit, int(i)) for unit, positions in shuffled_stretch(sizes, **how) for i in positions]


@given(sizes=SIZES, world=st.integers(1, 12), seed=st.integers(0, 5), epoch=st.integers(0, 3), window=WINDOW)
def test_the_ranks_of_a_world_share_an_epoch(sizes, world, seed, epoch, window):
    how = {"seed": seed, "epoch": epoch, "window": window}
    parts = [order(sizes, rank=rank, world=world, **how) for rank in range(world)]
    assert [entry for part in parts for entry in part] == order(sizes, **how)
    assert sorted(order(sizes, **how)) == [(unit, i) for unit, size in enumerate(sizes) for i in range(size)]
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert [len(part) for part in parts] == [len(stretch(sum(sizes), rank, world)) for rank in range(world)]


@given(sizes=SIZES, world=st.integers(1, 4), rank=st.integers(0, 3), skip=st.integers(0, 200), window=WINDOW)
def test_skip_is_the_tail_of_the_same_order(sizes, world, rank, skip, window):
    how = {"seed": 3, "epoch": 1, "rank": rank % world, "world": world, "window": window}
    assert order(sizes, skip=skip, **how) == order(sizes, **how)[skip:]


def test_epochs_and_seeds_differ():
    sizes = [50, 50]
    orders = {tuple(order(sizes, seed=seed, epoch=epoch)) for seed in range(3) for epoch in range(3)}
    assert len(orders) == 9


@given(size=st.integers(1, 60), window=st.integers(1, 20))
def test_a_window_is_read_from_front_to_back(size, window):
    positions = np.array([i for _, i in order([size], seed=0, epoch=0, window=window)])
    assert (np.diff(positions // window) >= 0).all()


def test_a_rank_out_of_its_world_is_refused():
    with pytest.raises(ValueError, match="rank 2 of a world of 2"):
        stretch(5, 2, 2)
