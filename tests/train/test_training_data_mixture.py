"""Mixtures: shares of turns, every pass of every source complete, and the same after a stop at any entry."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from itertools import islice

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_engine.errors import ConfigError
from data_engine.masks import rle
from data_engine.train.data.labelled import DataFilters
from data_engine.train.data.mixture import Mixture
from data_engine.train.data.pool import Example, Pool, Portion
from data_engine.train.supervised.settings import DataSettings
from data_engine.train.supervised.stream import ExampleStream, Position
from data_engine.train.supervised.views import ViewMaker


class Numbers(Pool):
    """Numbered images, some without a mask."""

    kind = "numbers"

    def __init__(self, count: int, bare: frozenset[int] = frozenset()) -> None:
        super().__init__("numbers", DataFilters())
        self.count, self.bare = count, bare

    def sizes(self) -> Sequence[int]:
        return [self.count // 2, self.count - self.count // 2]

    def image_ids(self) -> Iterator[str]:
        return map(str, range(self.count))

    def read(self, portion: Portion) -> Iterator[Example | None]:
        for position in portion.positions:
            number = portion.unit * (self.count // 2) + position
            mask = rle.encode(np.full((2, 2), number not in self.bare))
            yield Example(str(number), lambda mask=mask: [mask], lambda: np.zeros((2, 2, 3), np.uint8))


@given(
    counts=st.lists(st.integers(1, 12), min_size=2, max_size=3),
    bare=st.frozensets(st.integers(1, 11), max_size=4),
    world=st.integers(1, 3),
    skip=st.integers(0, 60),
)
def test_skip_is_exact_through_epochs_and_passed_over_entries(counts, bare, world, skip):
    mixture = Mixture([Numbers(count, bare) for count in counts], [1, 2.5, 1][: len(counts)])
    for rank in range(world):
        for epoch in range(3):
            how = {"seed": 5, "rank": rank, "world": world}
            whole = list(mixture.epoch(epoch, **how))
            rest = [i for i in whole if i.consumed > skip]
            again = list(mixture.epoch(epoch, skip=skip, **how))
            assert [(i.image_id, i.consumed) for i in again] == [(i.image_id, i.consumed) for i in rest]


def test_turns_follow_the_weights_and_passes_are_complete():
    mixture = Mixture([Numbers(10), Numbers(30)], [3, 1])
    assert len(mixture) == 40
    seen = [[i.image_id for i in mixture.epoch(epoch, seed=0)] for epoch in range(4)]
    for epoch in seen:
        assert Counter(name[0] for name in epoch) == {"0": 30, "1": 10}
        small = [name for name in epoch if name[0] == "0"]
        assert set(Counter(small).values()) == {3}  # three whole passes
    large = [name for epoch in seen[:3] for name in epoch if name[0] == "1"]
    assert len(set(large)) == 30  # one whole pass in three epochs


def test_a_source_smaller_than_the_world_has_no_turn_where_it_has_nothing():
    mixture = Mixture([Numbers(1), Numbers(8)], [1, 1])
    parts = [list(mixture.epoch(0, seed=0, rank=rank, world=4)) for rank in range(4)]
    assert sorted({i.image_id for part in parts for i in part if i.image_id[0] == "0"}) == ["0:0"]
    assert all(parts)


def test_weights_must_be_positive():
    with pytest.raises(ConfigError, match="above 0"):
        Mixture([Numbers(1)], [0])


def test_a_source_that_is_gone_through_again_is_seen_anew():
    """Two images beside twenty, in equal shares: each of the two several times an epoch, never in the same view."""
    mixture = Mixture([Numbers(2), Numbers(20)], [1, 1])
    maker = ViewMaker(DataSettings(jitter=(0.5, 2.0), smallest_mask=1), 1, 0, 64, 64)
    with closing(ExampleStream(mixture, maker, seed=0, threads=1).items(Position())) as items:
        seeds = [(item.example.image_id, item.example.seed) for item in islice(items, 3 * len(mixture))]
    assert len(set(seeds)) == len(seeds)
