"""Ground truth as PNGs in which every pixel has the number of its region."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from functools import partial
from io import BytesIO

import numpy as np
from PIL import Image

from data_engine.errors import SourceError
from data_engine.evaluation.ground_truth import Entry, GroundTruth, Outlines
from data_engine.evaluation.photographs import files_in
from data_engine.evaluation.places import is_folder
from data_engine.images.fetch import fetch
from data_engine.images.settings import InputSettings
from data_engine.images.shard import FileEntry, ImageError
from data_engine.masks import rle
from data_engine.storage import redact

_SETTINGS = InputSettings()


def id_map_truth(images: str, maps: str) -> GroundTruth:
    """The images that have a map, by name: photo.png for photo.jpg, else the first photo_*.png.

    Both are folders, local or in a store, and listed once. Raises SourceError and StorageError.
    """
    if not is_folder(maps):
        raise SourceError(
            f"{redact(maps)} is no ground truth: give COCO's JSON, a folder of id maps (PNG) or a finished dataset"
        )
    if not is_folder(images):
        raise SourceError(f"{redact(images)} cannot be listed: give a folder of photographs")
    known = {file.image_id: file for file in files_in(maps)}
    names = sorted(known)
    entries, without = [], 0
    for picture in files_in(images):
        if not _SETTINGS.is_image(picture.image_id):
            continue
        file = _map_of(picture.image_id, known, names)
        if file is None:
            without += 1
        else:
            entries.append(Entry(picture.image_id, picture, partial(_outlines, file)))
    return GroundTruth("id maps", redact(maps), entries, without)


def _map_of(image: str, maps: Mapping[str, FileEntry], names: Sequence[str]) -> FileEntry | None:
    """names: of all maps, sorted."""
    stem = image.rpartition(".")[0]
    if f"{stem}.png" in maps:
        return maps[f"{stem}.png"]
    first = f"{stem}_"
    at = bisect_left(names, first)
    while at < len(names) and names[at].startswith(first):
        if names[at].endswith(".png"):
            return maps[names[at]]
        at += 1
    return None


def _outlines(file: FileEntry) -> Outlines:
    name = redact(file.uri)
    try:
        with Image.open(BytesIO(fetch(file, _SETTINGS))) as image:
            ids = np.asarray(image)
    except (ImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise SourceError(f"{name} cannot be read as PNG ({error}); save it again or remove it") from None
    if ids.ndim != 2:
        raise SourceError(
            f"{name} is no id map: it has {ids.shape[2]} channels; save one number a pixel (8 or 16 bits)"
        )
    if ids.dtype == bool:
        ids = ids.astype(np.uint8)
    return Outlines([rle.encode(ids == number) for number in np.unique(ids) if number], [])
