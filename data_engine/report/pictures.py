"""Small pictures of chosen images with their masks, ready to stand in a page."""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image
from rlemasklib import RLEMask

from data_engine.dataset.commits import CommitRecord
from data_engine.dataset.export.overlays import draw_overlay
from data_engine.dataset.reader import DatasetImage, MaskDataset
from data_engine.errors import DataEngineError, SourceError, StorageError
from data_engine.images.decode import decode
from data_engine.images.fingerprint import sha256
from data_engine.images.settings import InputSettings
from data_engine.images.sources import read_shard
from data_engine.pipeline.originals import input_settings, is_part, original_of, relinked
from data_engine.pipeline.plan import JobPlan
from data_engine.report.sheets import Pick, Place

SIDE = 320  # pixels of the longer side
_DRAWN_AT = 2 * SIDE  # then halved: smooth outlines
_QUALITY = 78


@dataclass(frozen=True, slots=True)
class Picture:
    """A JPEG as a data URI, or why there is none."""

    uri: str | None
    missing: str = ""
    width: int = SIDE
    height: int = SIDE


def draw_pictures(
    dataset: MaskDataset,
    plan: JobPlan,
    places: Mapping[str, Place],
    picks: Iterable[Pick],
    budget: int,
    input_uri: str | None = None,
    on_image: Callable[[], None] = lambda: None,
) -> dict[tuple[str, int | None], Picture]:
    """A picture for each pick, by (image_id, mask_id). Reads each original once, of the chosen images alone.

    budget: bytes of all JPEGs together, as often as they are picked; those beyond it are left out, and say so.
    input_uri: as in `relinked`.
    """
    wanted: dict[str, Counter[int | None]] = {}
    for pick in picks:
        wanted.setdefault(pick.image_id, Counter())[pick.mask_id] += 1
    chosen = {image_id: places[image_id] for image_id in wanted if image_id in places}
    settings = input_settings(plan)
    drawn: dict[tuple[str, int | None], Picture] = {}
    spent = 0
    for image, data in _originals(dataset, relinked(plan, input_uri), settings, chosen):
        for mask_id, times in wanted[image.image_id].items():
            picture, size = _draw(image, data, mask_id, settings)
            if spent + times * size > budget:
                picture, size = Picture(None, "left out: the pictures of this report are large enough"), 0
            spent += times * size
            drawn[image.image_id, mask_id] = picture
        on_image()
    return drawn


def _draw(image: DatasetImage, data: bytes | None, mask_id: int | None, settings: InputSettings) -> tuple[Picture, int]:
    if data is None:
        return Picture(None, "the original is gone or has changed"), 0
    try:
        pixels = decode(data, settings)
        small = _small(pixels, image, mask_id)
    except (DataEngineError, MemoryError, ValueError) as error:
        return Picture(None, f"cannot be drawn: {error}"), 0
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=_QUALITY, optimize=True)
    jpeg = buffer.getvalue()
    uri = "data:image/jpeg;base64," + base64.b64encode(jpeg).decode()
    return Picture(uri, "", small.width, small.height), len(jpeg)


def _small(pixels: np.ndarray, image: DatasetImage, mask_id: int | None) -> Image.Image:
    """Pixels and run lengths are made smaller before masks are drawn: large images have many large masks."""
    height, width = pixels.shape[:2]
    scale = min(1.0, _DRAWN_AT / max(height, width))
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
    canvas = Image.fromarray(pixels).resize(size[::-1], Image.Resampling.LANCZOS)
    masks = image.masks if mask_id is None else image.masks.slice(mask_id, 1)
    counts = [_resized(text, (height, width), size) for text in masks["counts"].to_pylist()]
    masks = masks.set_column(masks.schema.get_field_index("counts"), "counts", pa.array(counts, pa.string()))
    row = {**image.row, "height": size[0], "width": size[1]}
    return draw_overlay(np.asarray(canvas), DatasetImage(row, masks), SIDE)


def _resized(counts: str, shape: tuple[int, int], size: tuple[int, int]) -> str:
    mask = RLEMask.from_dict({"size": list(shape), "counts": counts.encode("ascii")})
    smaller = mask if shape == size else mask.resize(size)
    text: bytes = smaller.to_dict(zlevel=None)["counts"]
    return text.decode("ascii")


def _originals(
    dataset: MaskDataset, plan: JobPlan, settings: InputSettings, places: Mapping[str, Place]
) -> Iterator[tuple[DatasetImage, bytes | None]]:
    """The chosen images with their bytes, slice by slice; None for an original that is gone or has changed."""
    by_record: dict[str, list[Place]] = {}
    for place in places.values():
        by_record.setdefault(place.record.file, []).append(place)
    records = {(record.shard, record.slice): record for record in dataset.commits}
    for file in sorted(by_record):
        chosen = sorted(by_record[file], key=lambda place: place.position)
        record = chosen[0].record
        before = records.get((record.shard, record.slice - 1))
        rows = dataset.slice(record)
        read = 0
        for place in chosen:
            image = next(islice(rows, place.position - read, None))
            read = place.position + 1
            if image is None:
                continue  # fewer rows than ids: the audit's matter
            data = _read_original(plan, settings, place, before, image.row)
            yield image, data if data is not None and sha256(data) == image.row["sha256"] else None


def _read_original(
    plan: JobPlan, settings: InputSettings, place: Place, before: CommitRecord | None, row: Mapping[str, Any]
) -> bytes | None:
    """A tar is entered where the slice begins, other shards at the image itself or before."""
    shard = next((planned.shard for planned in plan.shards if planned.id == place.record.shard), None)
    if shard is None:
        return None
    offset = before.next_offset if before is not None else None
    first = place.record.first_image
    number = first + place.position
    encoded = read_shard(shard, settings, start=number if offset is None else first, offset=offset)
    try:
        original = next(filter(original_of(shard, is_part(plan), row, number), encoded), None)
    except (SourceError, StorageError, FileNotFoundError):
        return None
    finally:
        encoded.close()
    return original.data if original is not None else None
