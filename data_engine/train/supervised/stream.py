"""An endless stream of examples, epoch after epoch, made ahead of the model by threads, resumable at any image."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass

from data_engine.errors import SourceError
from data_engine.prefetch import prefetched
from data_engine.train.data.labelled import PassedOver, TrainingData, Undecoded
from data_engine.train.supervised.views import Example, ViewMaker


@dataclass(frozen=True, slots=True)
class Position:
    """How far a worker is: in which epoch, and how many entries of its share of it are used up."""

    epoch: int = 0
    consumed: int = 0


@dataclass(frozen=True, slots=True)
class Item:
    example: Example
    position: Position  # after it
    passed_over: int  # images since the item before that had nothing to prompt


@dataclass(frozen=True, slots=True)
class _Made:
    """What became of an entry. The photograph itself is no longer held."""

    epoch: int
    entry: Undecoded
    passed_over: PassedOver | None
    example: Example | None  # None, too, for an image that has nothing to prompt


class ExampleStream:
    """Images are fetched and decoded, and views of them cut, by `threads` threads: never by the one that trains."""

    def __init__(
        self, data: TrainingData, maker: ViewMaker, *, seed: int, threads: int, rank: int = 0, world: int = 1
    ) -> None:
        self._data = data
        self._maker = maker
        self._seed = seed
        self._threads = threads
        self._rank = rank
        self._world = world

    def __len__(self) -> int:
        """Entries of an epoch, over all workers."""
        return len(self._data)

    def items(self, start: Position) -> Generator[Item, None, None]:
        """Goes on after `start`, for ever. Raises SourceError for an epoch without an image that can be prompted."""
        passed_over, epoch, nothing = 0, start.epoch, start.consumed == 0
        with closing(prefetched(self._entries(start), self._make, self._threads)) as all_made:
            for made in all_made:
                if made.epoch > epoch:
                    if nothing:
                        raise self._nothing(epoch)
                    epoch, nothing = made.epoch, True
                made.entry.settle(made.passed_over)
                if made.example is None:
                    passed_over += made.passed_over is None
                    continue
                yield Item(made.example, Position(epoch, made.entry.consumed), passed_over)
                passed_over, nothing = 0, False

    def _entries(self, start: Position) -> Iterator[tuple[int, Undecoded]]:
        """By the number of their epoch."""
        epoch, skip = start.epoch, start.consumed
        while True:
            empty = skip == 0
            for entry in self._data.undecoded(epoch, seed=self._seed, rank=self._rank, world=self._world, skip=skip):
                empty = False
                yield epoch, entry
            if empty:
                raise self._nothing(epoch)
            epoch, skip = epoch + 1, 0

    def _make(self, numbered: tuple[int, Undecoded]) -> _Made:
        epoch, entry = numbered
        found = entry.decode()
        if isinstance(found, PassedOver):
            return _Made(epoch, entry, found, None)
        return _Made(epoch, entry, None, self._maker.view(found, epoch if found.drawn is None else found.drawn))

    def _nothing(self, epoch: int) -> SourceError:
        return SourceError(
            f"epoch {epoch} has no image with a mask to prompt for worker {self._rank + 1} of {self._world}: "
            "give more data, wider data.filters or a lower data.smallest_mask"
        )
