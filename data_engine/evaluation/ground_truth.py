"""Photographs with the masks that people drew: a stream of them from whatever layout they lie in.

images/ + instances.json    COCO's JSON: polygons or run lengths, crowds
images/ + segments/         PNGs of region numbers, 0 for none, of the same stem (photo.png, or the first photo_*.png)
photos/ + a dataset         the masks of one of data-engine's own datasets
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from rlemasklib import RLEMask

from data_engine.errors import SourceError, UsageError
from data_engine.images.decode import decode
from data_engine.images.settings import InputSettings
from data_engine.images.shard import ImageError


@dataclass(frozen=True, slots=True)
class Outlines:
    masks: list[RLEMask]
    crowds: list[RLEMask]  # regions of many objects: asked of nobody, and held against nobody


@dataclass(frozen=True, slots=True)
class Entry:
    """A photograph that has ground truth. Both are read when they are asked for."""

    image_id: str
    path: Path
    outlines: Callable[[], Outlines]


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

    def images(self, limit: int | None = None) -> Iterator[AnnotatedImage]:
        """The first `limit` images. Raises SourceError for one that cannot be read or does not fit its masks."""
        for entry in self.entries[:limit]:
            pixels = _pixels(entry.path)
            outlines = entry.outlines()
            for runs in (*outlines.masks, *outlines.crowds):
                if tuple(runs.shape) != pixels.shape[:2]:
                    (h, w), (height, width) = runs.shape, pixels.shape[:2]
                    raise SourceError(
                        f"{entry.path} is {width}x{height} pixels, its masks in {self.source} are {w}x{h}: "
                        "use the image that was annotated (a resized or EXIF-rotated one does not fit)"
                    )
            yield AnnotatedImage(entry.image_id, pixels, outlines.masks, outlines.crowds)

    def leave_out(self, folder: Path) -> GroundTruth:
        """Without the images that a folder has too, by file name; "coco-1.jpg" there leaves out "1.jpg"."""
        if not folder.is_dir():
            raise UsageError(f"--leave-out {folder}: no such folder")
        names = {name for path in folder.iterdir() for name in (path.name, path.name.partition("-")[2])}
        kept = [entry for entry in self.entries if entry.path.name not in names]
        if not kept:
            raise UsageError(f"--leave-out {folder}: no image of {self.source} is left")
        return replace(self, entries=kept, left_out=len(self.entries) - len(kept))


def _pixels(path: Path) -> np.ndarray:
    try:
        return decode(path.read_bytes(), InputSettings())
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror}; check its permissions") from None
    except ImageError as error:
        raise SourceError(f"{path} is no picture that can be measured on: {error}; replace or remove it") from None
