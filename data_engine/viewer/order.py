"""Which images a list shows, and in which order."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data_engine.errors import UsageError
from data_engine.viewer.index import SliceIndex

Sort = Literal["dataset", "id", "masks", "predicted_iou", "stability", "area", "difference"]
Status = Literal["all", "masked", "failed"]


@dataclass(frozen=True, slots=True)
class Query:
    """What is asked of a list. Raises UsageError for a sort or status that there is not."""

    search: str = ""  # words that an id must have, in any case, accents composed or not
    sort: Sort = "dataset"  # "difference": in the number of masks, to the run beside it
    descending: bool = False
    status: Status = "all"

    def __post_init__(self) -> None:
        for name, allowed in (("sort", get_args(Sort)), ("status", get_args(Status))):
            if getattr(self, name) not in allowed:
                raise UsageError(f"{name}={getattr(self, name)!r}: use one of {', '.join(allowed)}")

    @property
    def as_stored(self) -> bool:
        """Whether it asks for all images in the order of the dataset, so that no index of all is needed."""
        return self == Query()


def ordered(images: SliceIndex, query: Query, other: SliceIndex | None = None) -> np.ndarray:
    """Positions, int64, of the images that `query` wants, in its order. Images without a value come last.

    other: the run beside it, for the sort "difference".
    """
    wanted = np.ones(len(images), bool)
    ids = images.ids
    if not query.search.isascii():  # keyboards type é as one character, names from a Mac have two
        ids = pc.utf8_normalize(ids, form="NFC")
    for word in unicodedata.normalize("NFC", query.search).split():
        wanted &= pc.match_substring(ids, word, ignore_case=True).to_numpy().astype(bool)
    if query.status != "all":
        wanted &= pc.is_valid(images.errors).to_numpy().astype(bool) == (query.status == "failed")
    positions = np.flatnonzero(wanted)
    if query.sort == "dataset":
        return positions[::-1] if query.descending else positions
    if query.sort == "id":
        order = "descending" if query.descending else "ascending"
        ids = pa.table({"id": images.ids.take(pa.array(positions))})
        return positions[pc.sort_indices(ids, sort_keys=[("id", order)]).to_numpy().astype(np.int64)]
    values = _difference(images, other) if query.sort == "difference" else getattr(images, query.sort)
    values = values[positions].astype(np.float64)
    return positions[np.argsort(-values if query.descending else values, kind="stable")]


def _difference(images: SliceIndex, other: SliceIndex | None) -> np.ndarray:
    """How many masks more or fewer each image has than in `other`, N float64; NaN where it is not in both."""
    if other is None:
        raise UsageError("sort='difference' compares two runs: start with --against")
    place = pc.index_in(images.ids, value_set=other.ids.combine_chunks())
    found = pc.is_valid(place).to_numpy().astype(bool)
    rows = pc.fill_null(place, 0).to_numpy()
    theirs = other.masks[rows] if len(other) else np.zeros(len(images))
    return np.where(found, np.abs(images.masks - theirs), np.nan)
