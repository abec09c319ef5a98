"""What the readers share: order, filters, and what is passed over, counted and said."""

from __future__ import annotations

import logging
import zlib
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np
from rlemasklib import RLEMask

from data_engine.errors import DatasetError, SourceError
from data_engine.images.shard import ImageError
from data_engine.train.data.labelled import DataFilters, LabelledImage, PassedOver, Undecoded, decoded
from data_engine.train.data.order import shuffled_stretch, stretch

logger = logging.getLogger(__name__)

NO_MASKS = "no mask that passes the filters"
_DAMAGED_AT_FIRST = 50  # so many, and none that is whole: the data are not what they were taken for


@dataclass(frozen=True, slots=True)
class Portion:
    """What of a unit is read: positions in it, in the order that is asked for."""

    unit: int
    positions: list[int]
    seed: int
    epoch: int


@dataclass(frozen=True, slots=True)
class Example:
    """One entry, of which nothing is decoded before it is asked for, in any thread.

    Both raise ImageError or SourceError, and StorageError where a store fails.
    """

    image_id: str
    masks: Callable[[], list[RLEMask]]  # those that pass the limits that only the reader can check
    pixels: Callable[[], np.ndarray]  # HxWx3 uint8


@dataclass(slots=True)
class _Used:
    """How many entries of an epoch gave an image so far."""

    whole: bool  # the epoch is gone through from its first entry to its last
    images: int = 0


class Pool(ABC):
    """Entries in units that a subclass reads, as `TrainingData`."""

    kind: ClassVar[str]

    def __init__(self, source: str, filters: DataFilters) -> None:
        self.source = source
        self.filters = filters
        self.passed_over: Counter[str] = Counter()
        """Entries that could not be used, by reason, counted in this process."""
        self._whole = 0

    @property
    def window(self) -> int | None:
        """Entries that are shuffled together, where a unit is read from front to back; None: all of a unit."""
        return None

    @abstractmethod
    def sizes(self) -> Sequence[int]:
        """Entries of every unit."""

    @abstractmethod
    def read(self, portion: Portion) -> Iterator[Example | None]:
        """An example for each position, in the order given; None where no mask passes the filters.

        They are decoded later, in other threads and several at a time. Raises StorageError where a store fails.
        """

    @abstractmethod
    def image_ids(self) -> Iterator[str]:
        """Of all entries."""

    def __len__(self) -> int:
        return sum(self.sizes())

    def share(self, rank: int, world: int) -> int:
        """Entries of a rank's epoch, those that will be passed over included."""
        return len(stretch(len(self), rank, world))

    def epoch(self, epoch: int, *, seed: int, rank: int = 0, world: int = 1, skip: int = 0) -> Iterator[LabelledImage]:
        """See `TrainingData`. Raises DatasetError when a whole epoch has nothing, SourceError when nothing is whole."""
        return decoded(self.undecoded(epoch, seed=seed, rank=rank, world=world, skip=skip))

    def undecoded(self, epoch: int, *, seed: int, rank: int = 0, world: int = 1, skip: int = 0) -> Iterator[Undecoded]:
        """See `TrainingData`."""
        consumed, last = skip, self.share(rank, world)
        used = _Used(whole=world == 1 and skip == 0)
        if not last and used.whole:
            raise self._nothing(0)
        order = shuffled_stretch(
            self.sizes(), seed=seed, epoch=epoch, rank=rank, world=world, skip=skip, window=self.window
        )
        for unit, positions in order:
            for example in self.read(Portion(unit, positions.tolist(), seed, epoch)):
                consumed += 1
                yield Undecoded(
                    consumed,
                    partial(self._labelled, example, consumed, seed, epoch),
                    partial(self._settle, used, consumed, last),
                )

    def describe(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "source": self.source,
            "images": len(self),
            "filters": asdict(self.filters),
            "passed_over": dict(self.passed_over),
        }

    def _labelled(self, example: Example | None, consumed: int, seed: int, epoch: int) -> LabelledImage | PassedOver:
        if example is None:
            return PassedOver(NO_MASKS)
        try:
            masks = self._kept(example, seed, epoch)
            if len(masks) < self.filters.min_masks_per_image:
                return PassedOver(NO_MASKS)
            pixels = example.pixels()
            _check_shapes(pixels, masks)
        except ImageError as error:
            return PassedOver(error.type, f"{example.image_id}: {error}")
        except SourceError as error:
            return PassedOver("damaged", str(error))
        return LabelledImage(example.image_id, pixels, masks, consumed)

    def _settle(self, used: _Used, consumed: int, last: int, passed_over: PassedOver | None) -> None:
        """consumed: which entry of the epoch it is; last: how many there are."""
        if passed_over is None:
            self._whole += 1
            used.images += 1
        else:
            self._pass_over(passed_over)
        if consumed == last and not used.images and used.whole:
            raise self._nothing(consumed)

    def _kept(self, example: Example, seed: int, epoch: int) -> list[RLEMask]:
        filters = self.filters
        masks = [mask for mask in example.masks() if self._fits(mask)]
        limit = filters.max_masks_per_image
        if limit is not None and len(masks) > limit:
            rng = np.random.default_rng([seed, epoch, zlib.crc32(example.image_id.encode())])
            masks = [masks[i] for i in np.sort(rng.choice(len(masks), limit, replace=False))]
        return masks

    def _fits(self, mask: RLEMask) -> bool:
        height, width = mask.shape
        area = int(mask.area())
        return self.filters.min_area <= area <= self.filters.max_area_fraction * height * width

    def _pass_over(self, found: PassedOver) -> None:
        reason, message = found.reason, found.message
        if message is not None and not self.passed_over[reason]:
            logger.warning("%s: passed over, like all that follow (see passed_over in the log): %s", reason, message)
        self.passed_over[reason] += 1
        damaged = sum(count for why, count in self.passed_over.items() if why != NO_MASKS)
        if message is not None and not self._whole and damaged >= _DAMAGED_AT_FIRST:
            raise SourceError(f"{self.source}: the first {damaged} images cannot be used, the last since {message}")

    def _nothing(self, images: int) -> DatasetError:
        return DatasetError(
            f"{self.source}: none of its {images:,} images can be trained on ({self._reasons()}); "
            "loosen the filters or use other data"
        )

    def _reasons(self) -> str:
        return "; ".join(f"{count:,}: {reason}" for reason, count in self.passed_over.items()) or "it is empty"


def _check_shapes(pixels: np.ndarray, masks: list[RLEMask]) -> None:
    for mask in masks:
        if tuple(mask.shape) != pixels.shape[:2]:
            (h, w), (height, width) = mask.shape, pixels.shape[:2]
            raise ImageError("changed", f"the image is {width}x{height} pixels, its masks are {w}x{h}")
