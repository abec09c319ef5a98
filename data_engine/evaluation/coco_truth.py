"""Ground truth in COCO's JSON: polygons, run lengths as numbers or compressed, crowds."""

from __future__ import annotations

import json
from collections import defaultdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco
from rlemasklib import RLEMask

from data_engine.errors import SourceError
from data_engine.evaluation.ground_truth import Entry, GroundTruth, Outlines
from data_engine.masks import rle


def coco_truth(images: Path, file: Path) -> GroundTruth:
    """The images of a COCO file that are in the folder and have at least one object, by id. Raises SourceError."""
    content = _read(file)
    annotations: dict[Any, list[dict[str, Any]]] = defaultdict(list)
    for annotation in content["annotations"]:
        annotations[annotation.get("image_id")].append(annotation)
    entries, missing = [], 0
    for image in sorted(content["images"], key=lambda image: (str(type(image.get("id"))), image.get("id"))):
        try:
            name, height, width = str(image["file_name"]), int(image["height"]), int(image["width"])
        except (KeyError, TypeError, ValueError):
            raise SourceError(f"{file}: image {image.get('id')!r} lacks file_name, height or width") from None
        mine = annotations[image.get("id")]
        if all(annotation.get("iscrowd") for annotation in mine):
            continue
        if not (images / name).is_file():
            missing += 1
            continue
        entries.append(Entry(name, images / name, partial(_outlines, file, mine, height, width)))
    return GroundTruth("COCO", str(file), entries, missing)


def _read(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise SourceError(f"{file} cannot be read: {error.strerror}; give COCO's instances file") from None
    except ValueError as error:
        raise SourceError(f"{file} is not JSON ({error}); give COCO's instances file") from None
    parts = [content.get(key) for key in ("images", "annotations")] if isinstance(content, dict) else []
    if not parts or not all(isinstance(part, list) and all(isinstance(row, dict) for row in part) for part in parts):
        raise SourceError(f"{file} is not COCO's format: it needs the lists `images` and `annotations`")
    return content


def _outlines(file: Path, annotations: list[dict[str, Any]], height: int, width: int) -> Outlines:
    found = Outlines([], [])
    for annotation in annotations:
        runs = _runs(file, annotation, height, width)
        if runs.area():
            (found.crowds if annotation.get("iscrowd") else found.masks).append(runs)
    return found


def _runs(file: Path, annotation: dict[str, Any], height: int, width: int) -> RLEMask:
    outline = annotation.get("segmentation")
    where = f"{file}: annotation {annotation.get('id')!r}"
    try:
        if isinstance(outline, list):
            if not outline or not all(len(polygon) >= 6 and np.isfinite(polygon).all() for polygon in outline):
                raise ValueError("a polygon has three or more points")
            merged = coco.merge(coco.frPyObjects(outline, height, width))
            return rle.from_counts_string(merged["counts"].decode("ascii"), height, width)
        size, counts = [int(side) for side in outline["size"]], outline["counts"]  # type: ignore[index]
        if size != [height, width]:
            raise ValueError(f"its size is {size}, its image's [{height}, {width}]")
        if isinstance(counts, str):
            return rle.from_counts_string(counts, height, width)
        return RLEMask.from_counts(np.array(counts, np.uint32), (height, width))
    except (KeyError, TypeError, ValueError, OverflowError, UnicodeError) as error:
        raise SourceError(f"{where} has no usable segmentation ({error}); repair or remove it") from None
