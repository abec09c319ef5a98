"""Ground truth as PNGs in which every pixel has the number of its region."""

from __future__ import annotations

import glob
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from data_engine.errors import SourceError
from data_engine.evaluation.ground_truth import Entry, GroundTruth, Outlines
from data_engine.images.settings import InputSettings
from data_engine.masks import rle


def id_map_truth(images: Path, maps: Path) -> GroundTruth:
    """The images that have a map, by name: photo.png for photo.jpg, else the first photo_*.png. Raises SourceError."""
    if not maps.is_dir():
        raise SourceError(
            f"{maps} is no ground truth: give COCO's JSON, a folder of id maps (PNG) or a finished dataset"
        )
    entries, without = [], 0
    for path in _images(images):
        map_file = _map_of(path, maps)
        if map_file is None:
            without += 1
        else:
            entries.append(Entry(path.name, path, partial(_outlines, map_file)))
    return GroundTruth("id maps", str(maps), entries, without)


def _images(folder: Path) -> Iterator[Path]:
    settings = InputSettings()
    try:
        return (path for path in sorted(folder.iterdir()) if path.is_file() and settings.is_image(path.name))
    except OSError as error:
        raise SourceError(f"{folder} cannot be listed ({error.strerror}): give a folder of photographs") from None


def _map_of(image: Path, maps: Path) -> Path | None:
    same = maps / f"{image.stem}.png"
    if same.is_file():
        return same
    return min(maps.glob(f"{glob.escape(image.stem)}_*.png"), default=None)


def _outlines(file: Path) -> Outlines:
    try:
        with Image.open(file) as image:
            ids = np.asarray(image)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise SourceError(f"{file} cannot be read as PNG ({error}); save it again or remove it") from None
    if ids.ndim != 2:
        raise SourceError(
            f"{file} is no id map: it has {ids.shape[2]} channels; save one number a pixel (8 or 16 bits)"
        )
    if ids.dtype == bool:
        ids = ids.astype(np.uint8)
    return Outlines([rle.encode(ids == number) for number in np.unique(ids) if number], [])
