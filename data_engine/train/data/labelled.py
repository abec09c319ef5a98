"""The contract between what training reads and what trains: images with masks, in an order that can be repeated."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from rlemasklib import RLEMask

from data_engine.prefetch import prefetched


@dataclass(frozen=True, slots=True)
class LabelledImage:
    """A photograph and the masks of things in it. Masks may overlap and nest; none is empty."""

    image_id: str
    image: np.ndarray  # HxWx3 uint8 RGB, as displayed
    masks: list[RLEMask]  # N masks of HxW
    consumed: int = 0
    """How many entries of this rank's epoch are over with this image: the `skip` that goes on after it.

    It grows by more than one where entries were passed over: damaged files, and images without a mask that is kept.
    """
    drawn: int | None = None
    """How often its source was gone through before, where that is not once an epoch: each time in another view."""


@dataclass(frozen=True, slots=True)
class PassedOver:
    """Why an entry gives no image."""

    reason: str
    message: str | None = None  # of damage: which image it is, and what is wrong with it


@dataclass(frozen=True, slots=True)
class Undecoded:
    """One entry of an epoch, of which nothing is decoded yet. Any number of them may be decoded at a time."""

    consumed: int
    """As of LabelledImage."""
    decode: Callable[[], LabelledImage | PassedOver]
    """In any thread. Raises StorageError where a store fails."""
    settle: Callable[[PassedOver | None], None]
    """Says what came of it: None for an image. Called in the order of the epoch, so that counts and errors are the same
    however many threads decode. Raises DatasetError and SourceError for data that cannot be trained on."""


class TrainingData(Protocol):
    """Images to train on, sharded and shuffled. It can be pickled, so that DataLoader workers can hold it."""

    def undecoded(self, epoch: int, *, seed: int, rank: int = 0, world: int = 1, skip: int = 0) -> Iterator[Undecoded]:
        """`epoch`, to be decoded by whoever asks: every entry, those that will be passed over included."""
        ...

    def epoch(self, epoch: int, *, seed: int, rank: int = 0, world: int = 1, skip: int = 0) -> Iterator[LabelledImage]:
        """This rank's images of an epoch: a function of (seed, epoch, rank, world).

        The ranks of a world share an epoch without gaps or doubles. A worker process of a data loader is a rank of
        its own: see `share_of_worker`. `skip` entries from the start are left out without being read or decoded:
        pass the `consumed` of the last image that was used.
        """
        ...

    def __len__(self) -> int:
        """Entries of an epoch, over all ranks; those that will be passed over included."""
        ...

    def image_ids(self) -> Iterator[str]:
        """Of all entries, in no order that means anything; of procedural scenes none."""
        ...

    def describe(self) -> dict[str, Any]:
        """Plain values for a log: what is read, how much of it, and what was passed over so far and why."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class DataFilters:
    """Which masks are trained on. A limit on something that a source does not say (people's masks have no predicted
    IoU) does not apply to it."""

    min_predicted_iou: float = 0.0
    min_stability: float = 0.0
    min_area: int = 1
    """In pixels."""
    max_area_fraction: float = 1.0
    """Of the image."""
    max_masks_per_image: int | None = None
    """Of an image with more, so many are drawn anew in every epoch."""
    min_masks_per_image: int = 1
    """Images that keep fewer masks are passed over; 0 yields images without any mask, too."""

    # For pydantic, which validates this dataclass as a section of the training's and the loop's settings.
    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012 (slots: not a field)

    def __post_init__(self) -> None:
        """Raises ValueError naming the limit that no mask can meet."""
        if self.min_area < 1:
            raise ValueError(f"min_area is {self.min_area}: a mask has at least 1 pixel")
        if not 0 < self.max_area_fraction <= 1:
            raise ValueError(f"max_area_fraction is {self.max_area_fraction}: write a share above 0, at most 1")
        if self.max_masks_per_image is not None and self.max_masks_per_image < 1:
            raise ValueError(f"max_masks_per_image is {self.max_masks_per_image}: at least 1, or null for no limit")
        if self.min_masks_per_image < 0:
            raise ValueError(f"min_masks_per_image is {self.min_masks_per_image}: at least 0")


def decoded(entries: Iterable[Undecoded], threads: int = 0) -> Generator[LabelledImage, None, None]:
    """The images of entries, in their order: decoded when they are asked for, or by so many threads ahead of that."""
    read = prefetched(entries, _decoded, threads) if threads else (_decoded(entry) for entry in entries)
    with closing(read):
        for entry, found in read:
            if isinstance(found, PassedOver):
                entry.settle(found)
            else:
                entry.settle(None)
                yield found


def _decoded(entry: Undecoded) -> tuple[Undecoded, LabelledImage | PassedOver]:
    return entry, entry.decode()


def share_of_worker(rank: int, world: int) -> tuple[int, int]:
    """(rank, world) for `epoch` inside a torch DataLoader worker; unchanged outside of one."""
    from torch.utils.data import get_worker_info

    worker = get_worker_info()
    if worker is None:
        return rank, world
    return rank * worker.num_workers + worker.id, world * worker.num_workers


def open_training_data(spec: str, filters: DataFilters) -> TrainingData:
    """The data that a specification names: see docs/training-data.md.

    `dataset:PATH`, `sa1b:PATH`, `coco:JSON@IMAGES`, `idmaps:IMAGES@SEGMENTS`, `scenes:COUNT`; a plain path is one
    of the first four where its content says which. Several with weights are mixed: `3*dataset:masks + 1*scenes:1000`.
    Raises ConfigError for a specification that cannot be read, DatasetError and SourceError for data that cannot.
    """
    from data_engine.train.data.spec import opened

    return opened(spec, filters)
