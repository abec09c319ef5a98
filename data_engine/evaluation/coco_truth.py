"""Ground truth in COCO's JSON: polygons, run lengths as numbers or compressed, crowds."""

from __future__ import annotations

import json
import logging
from collections import Counter, defaultdict
from collections.abc import Hashable
from functools import partial
from typing import Any

import numpy as np
from pycocotools import mask as coco
from rlemasklib import RLEMask

from data_engine.errors import SourceError
from data_engine.evaluation.coco_rows import read_rows
from data_engine.evaluation.ground_truth import Entry, GroundTruth, Outlines
from data_engine.evaluation.photographs import Photographs
from data_engine.masks import rle
from data_engine.storage import redact

logger = logging.getLogger(__name__)


def coco_truth(images: str, file: str) -> GroundTruth:
    """The images of a COCO file that are in the folder and have at least one object, by id.

    Both are paths or URLs. Of the annotations the text is kept, which takes a fifth of the memory of what it says.
    Raises SourceError and StorageError.
    """
    rows: list[tuple[Hashable, str, int, int]] = []  # id, file_name, height, width
    texts: dict[Hashable, list[str]] = defaultdict(list)  # by image
    with_objects: set[Hashable] = set()
    found: Counter[str] = Counter()
    name = redact(file)

    def take_image(row: dict[str, Any], _: str) -> None:
        try:
            rows.append((_hashable(row["id"]), str(row["file_name"]), int(row["height"]), int(row["width"])))
        except (KeyError, TypeError, ValueError, OverflowError):
            raise SourceError(f"{name}: image {row.get('id')!r} lacks file_name, height, width or id") from None

    def take_annotation(row: dict[str, Any], text: str) -> None:
        try:
            image = _hashable(row.get("image_id"))
        except TypeError:
            raise SourceError(
                f"{name}: annotation {row.get('id')!r} is of image {row['image_id']!r}, which is no id"
            ) from None
        if not _is_outlined(row):
            found["bare"] += 1
            return
        texts[image].append(text)
        if row.get("iscrowd"):
            found["crowds"] += 1
        else:
            found["objects"] += 1
            with_objects.add(image)

    read_rows(file, {"images": take_image, "annotations": take_annotation})
    _say_what_is_left_out(name, found)
    rows = [row for row in rows if row[0] in with_objects]
    photographs = Photographs(images, recursive=any("/" in row[1] for row in rows))
    entries, missing = [], 0
    for image, file_name, height, width in sorted(rows, key=lambda row: (str(type(row[0])), row[0])):
        picture = photographs.find(file_name)
        if picture is None:
            missing += 1
            continue
        annotations = ",".join(texts[image])
        texts[image] = [annotations]
        entries.append(Entry(file_name, picture, partial(_outlines, name, annotations, height, width)))
    return GroundTruth("COCO", name, entries, missing)


def _hashable(value: Any) -> Hashable:
    """Raises TypeError for a list or an object, which is no id."""
    hash(value)
    return value


def _is_outlined(row: dict[str, Any]) -> bool:
    """False where there is a box alone, or nothing but polygons of one or two points: many tools write both."""
    outline = row.get("segmentation")
    if isinstance(outline, list):
        return any(map(_is_polygon, outline))
    return bool(outline)


def _is_polygon(points: Any) -> bool:
    return isinstance(points, list) and len(points) >= 6


def _say_what_is_left_out(name: str, found: Counter[str]) -> None:
    """Raises SourceError where no annotation is an object."""
    total = found.total()
    if total and not found["objects"]:
        raise SourceError(
            f"{name}: none of its {total:,} annotations outlines an object: {found['bare']:,} have no outline "
            f"(segmentation), {found['crowds']:,} are crowds (iscrowd: some tools set it for every run length; set it "
            "to 0 where there is one object)"
        )
    if found["bare"]:
        logger.warning(
            "%s: %s of its %s annotations have no outline (a box alone, or fewer than three points): left out",
            name,
            f"{found['bare']:,}",
            f"{total:,}",
        )


def _outlines(file: str, annotations: str, height: int, width: int) -> Outlines:
    """annotations: JSON objects with commas between them."""
    found = Outlines([], [])
    for annotation in json.loads(f"[{annotations}]"):
        runs = _runs(file, annotation, height, width)
        if runs.area():
            (found.crowds if annotation.get("iscrowd") else found.masks).append(runs)
    return found


def _runs(file: str, annotation: dict[str, Any], height: int, width: int) -> RLEMask:
    outline = annotation.get("segmentation")
    where = f"{file}: annotation {annotation.get('id')!r}"
    try:
        if isinstance(outline, list):
            polygons = [polygon for polygon in outline if _is_polygon(polygon)]
            if not all(np.isfinite(polygon).all() for polygon in polygons):
                raise ValueError("a point of a polygon is no number")
            merged = coco.merge(coco.frPyObjects(polygons, height, width))
            return rle.from_counts_string(merged["counts"].decode("ascii"), height, width)
        size, counts = [int(side) for side in outline["size"]], outline["counts"]  # type: ignore[index]
        if size != [height, width]:
            raise ValueError(f"its size is {size}, its image's [{height}, {width}]")
        if isinstance(counts, str):
            return rle.from_counts_string(counts, height, width)
        return RLEMask.from_counts(np.array(counts, np.uint32), (height, width))
    except (KeyError, TypeError, ValueError, OverflowError, UnicodeError) as error:
        raise SourceError(f"{where} has no usable segmentation ({error}); repair or remove it") from None
