"""Photographs with the masks that people drew: a stream of them from whatever layout they lie in.

images/ + instances.json    COCO's JSON: polygons or run lengths, crowds
images/ + segments/         PNGs of region numbers, 0 for none, of the same stem (photo.png, or the first photo_*.png)
photos/ + a dataset         the masks of one of data-engine's own datasets
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from rlemasklib import RLEMask

from data_engine.errors import SourceError, UsageError
from data_engine.evaluation.photographs import pixels_of
from data_engine.evaluation.places import is_folder
from data_engine.images.shard import FileEntry, ImageError
from data_engine.prefetch import prefetched
from data_engine.storage import list_names, redact

_READERS = 2  # threads that fetch and decode photographs ahead of the model


@dataclass(frozen=True, slots=True)
class Outlines:
    masks: list[RLEMask]
    crowds: list[RLEMask]  # regions of many objects: asked of nobody, and held against nobody


@dataclass(frozen=True, slots=True)
class Entry:
    """A photograph that has ground truth. Both are read when they are asked for."""

    image_id: str
    picture: FileEntry
    outlines: Callable[[], Outlines]

    @property
    def file_name(self) -> str:
        """Without folders."""
        return self.image_id.rsplit("/", 1)[-1]


@dataclass(frozen=True, slots=True)
class AnnotatedImage:
    image_id: str
    pixels: np.ndarray  # HxWx3 uint8
    masks: list[RLEMask]
    crowds: list[RLEMask]


@dataclass(frozen=True, slots=True)
class GroundTruth:
    kind: str  # "COCO", "id maps" or "dataset"
    source: str
    entries: list[Entry]
    without: int = 0
    """Images of one side that have no counterpart on the other: not measured."""
    left_out: int = 0
    """Images that were asked not to be measured."""

    def read(self, limit: int | None = None) -> Iterator[AnnotatedImage | SourceError]:
        """The first `limit` images, of which some are read ahead; in place of one that cannot be measured on, why.

        Raises StorageError where a store fails, DatasetError where a dataset is damaged.
        """
        entries = self.entries[:limit]
        with closing(prefetched(entries, _pixels, _READERS)) as read:
            for entry, pixels in zip(entries, read, strict=True):
                if isinstance(pixels, SourceError):
                    yield pixels
                    continue
                try:
                    yield self._annotated(entry, pixels)
                except SourceError as error:
                    yield error

    def images(self, limit: int | None = None) -> Iterator[AnnotatedImage]:
        """As `read`. Raises SourceError for an image that cannot be measured on."""
        for found in self.read(limit):
            if isinstance(found, SourceError):
                raise found
            yield found

    def _annotated(self, entry: Entry, pixels: np.ndarray) -> AnnotatedImage:
        outlines = entry.outlines()
        for runs in (*outlines.masks, *outlines.crowds):
            if tuple(runs.shape) != pixels.shape[:2]:
                (h, w), (height, width) = runs.shape, pixels.shape[:2]
                raise SourceError(
                    f"{redact(entry.picture.uri)} is {width}x{height} pixels, its masks in {self.source} are "
                    f"{w}x{h}: use the image that was annotated (a resized or EXIF-rotated one does not fit)"
                )
        return AnnotatedImage(entry.image_id, pixels, outlines.masks, outlines.crowds)

    def leave_out(self, folder: str | Path) -> GroundTruth:
        """Without the images that a folder has too, by file name; "coco-1.jpg" there leaves out "1.jpg"."""
        folder = str(folder)
        if not is_folder(folder):
            raise UsageError(f"--leave-out {redact(folder)}: no such folder")
        names = {name for found in list_names(folder) for name in (found, found.partition("-")[2])}
        kept = [entry for entry in self.entries if entry.file_name not in names]
        if not kept:
            raise UsageError(f"--leave-out {redact(folder)}: no image of {self.source} is left")
        return replace(self, entries=kept, left_out=len(self.entries) - len(kept))


def _pixels(entry: Entry) -> np.ndarray | SourceError:
    name = redact(entry.picture.uri)
    try:
        return pixels_of(entry.picture)
    except ImageError as error:
        if error.type == "unreadable":
            return SourceError(f"{name} cannot be read: {error}; put it back, or check its permissions")
        return SourceError(f"{name} is no picture that can be measured on: {error}; replace or remove it")
