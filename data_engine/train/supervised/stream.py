"""An endless stream of examples, epoch after epoch, cut ahead of the model by threads, resumable at any image."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from data_engine.errors import SourceError
from data_engine.train.data.labelled import LabelledImage, TrainingData
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


class ExampleStream:
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
        passed_over, last = 0, start.epoch
        with ThreadPoolExecutor(self._threads, thread_name_prefix="view") as pool:
            for position, future in self._ahead(pool, start):
                example = future.result()
                if example is None:
                    passed_over += 1
                    if position.epoch > last + 1:  # a whole epoch of them
                        raise self._nothing(last + 1)
                    continue
                yield Item(example, position, passed_over)
                passed_over, last = 0, position.epoch

    def _ahead(self, pool: ThreadPoolExecutor, start: Position) -> Iterator[tuple[Position, Future[Example | None]]]:
        waiting: deque[tuple[Position, Future[Example | None]]] = deque()
        try:
            for image, position in self._images(start):
                drawn = position.epoch if image.drawn is None else image.drawn
                waiting.append((position, pool.submit(self._maker.view, image, drawn)))
                if len(waiting) > 2 * self._threads:
                    yield waiting.popleft()
        finally:
            for _, future in waiting:
                future.cancel()

    def _images(self, start: Position) -> Iterator[tuple[LabelledImage, Position]]:
        epoch, skip = start.epoch, start.consumed
        while True:
            empty = skip == 0
            for image in self._data.epoch(epoch, seed=self._seed, rank=self._rank, world=self._world, skip=skip):
                empty = False
                yield image, Position(epoch, image.consumed)
            if empty:
                raise self._nothing(epoch)
            epoch, skip = epoch + 1, 0

    def _nothing(self, epoch: int) -> SourceError:
        return SourceError(
            f"epoch {epoch} has no image with a mask to prompt for worker {self._rank + 1} of {self._world}: "
            "give more data, wider data.filters or a lower data.smallest_mask"
        )
