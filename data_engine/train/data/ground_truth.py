"""Masks that people drew, in the layouts that `data_engine.evaluation` reads: COCO's JSON and folders of id maps."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
from rlemasklib import RLEMask

from data_engine.errors import SourceError
from data_engine.evaluation.ground_truth import Entry, GroundTruth
from data_engine.evaluation.photographs import pixels_of
from data_engine.images.shard import FileEntry, ImageError
from data_engine.storage import redact
from data_engine.train.data.labelled import DataFilters
from data_engine.train.data.pool import Example, Pool, Portion

logger = logging.getLogger(__name__)


class TruthMasks(Pool):
    """Every image that has an object is an entry; the photographs and outlines are read when their turn comes.

    Crowds (COCO's `iscrowd`: one outline around many things) are no masks to train on. People's masks have no
    predicted IoU and no stability, so those limits do not touch them.
    """

    def __init__(self, truth: GroundTruth, filters: DataFilters) -> None:
        """Raises SourceError where no image has an object."""
        super().__init__(truth.source, filters)
        if not truth.entries:
            raise SourceError(f"{truth.source}: none of its images is there and has an object; check the folders")
        if truth.without:
            logger.warning(
                "%s: %s images have no counterpart (a photograph, or masks) and are left out; %s are there",
                truth.source,
                f"{truth.without:,}",
                f"{len(truth.entries):,}",
            )
        self.kind = "coco" if truth.kind == "COCO" else "idmaps"  # type: ignore[misc]
        self._entries = truth.entries
        self._without = truth.without

    def sizes(self) -> Sequence[int]:
        return [len(self._entries)]

    def image_ids(self) -> Iterator[str]:
        return (entry.image_id for entry in self._entries)

    def read(self, portion: Portion) -> Iterator[Example | None]:
        for position in portion.positions:
            entry = self._entries[position]
            yield Example(entry.image_id, partial(_masks, entry), partial(_pixels, entry.picture))

    def describe(self) -> dict[str, Any]:
        return {**super().describe(), "images_without_counterpart": self._without}


def _masks(entry: Entry) -> list[RLEMask]:
    return entry.outlines().masks


def _pixels(picture: FileEntry) -> np.ndarray:
    try:
        return pixels_of(picture)
    except ImageError as error:
        raise ImageError(error.type, f"{error} ({redact(picture.uri)})") from None
