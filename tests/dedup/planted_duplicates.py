"""A dataset of images with the hashes, sizes and bytes that a test wants, on disk as a job writes it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from dataset.small_dataset import FINGERPRINT, HEIGHT, WIDTH, image_row, mask_columns, write_manifest
from pycocotools import mask as coco

from data_engine.dataset.coco_runs import area_and_box
from data_engine.dataset.commits import CommitRecord, Part, Totals
from data_engine.dataset.schema import SCHEMA_VERSION
from data_engine.dataset.writer import SliceWriter


def picture(image_id: str, phash: int | None, content: str | None = None, **changes: Any) -> dict[str, Any]:
    """An image's row; `content` stands for its bytes, by default its own. `changes`: other columns."""
    row = image_row(image_id, "", changes.pop("n_masks", 0 if phash is None else 2), failed=phash is None)
    return row | {"phash": phash, "sha256": hashlib.sha256((content or image_id).encode()).digest(), **changes}


def build_pictures(root: Path, *slices: list[dict[str, Any]], complete: bool = True) -> None:
    """One shard, one commit for each list of rows. Masks are of 40 x 60 pixels, whatever the image."""
    rng = np.random.default_rng(0)
    (root / "_plan").mkdir(parents=True, exist_ok=True)
    (root / "_plan/job.json").write_text(json.dumps({"schema_version": SCHEMA_VERSION, "fingerprint": FINGERPRINT}))
    records, first = [], 0
    for index, rows in enumerate(slices):
        record = _commit(root, rng, rows, index, first, final=index == len(slices) - 1)
        records.append(record)
        first += len(rows)
    if complete:
        write_manifest(root, records)


def _commit(
    root: Path, rng: np.random.Generator, rows: list[dict[str, Any]], index: int, first: int, final: bool
) -> CommitRecord:
    shard = "a" * 16
    writer = SliceWriter({"fingerprint": FINGERPRINT})
    for row in rows:
        writer.add({**row, "shard": shard}, row.get("masks") or mask_columns(rng, row["n_masks"]))
    parts = {}
    for folder, file in zip(("images", "masks"), writer.finish()[:2], strict=True):
        (root / folder).mkdir(exist_ok=True)
        name = f"{folder}/{shard}-{index}.parquet"
        (root / name).write_bytes(file.data)
        parts[folder] = Part(file=name, size=len(file.data), sha256=file.sha256, rows=file.rows)
    record = CommitRecord(
        fingerprint=FINGERPRINT,
        shard=shard,
        slice=index,
        first_image=first,
        final=final,
        totals=Totals(images=len(rows), masks=sum(row["n_masks"] for row in rows)),
        owner="o" * 32,
        attempt="1",
        **parts,
    )
    (root / "_commits").mkdir(exist_ok=True)
    (root / record.file).write_bytes(record.to_json())
    return record


def columns(masks, predicted_iou, crops=None):
    """Columns of the masks table for HxW arrays."""
    rles = [coco.encode(np.asfortranarray(mask.astype(np.uint8))) for mask in masks]
    area, box = area_and_box(rles)
    template = mask_columns(np.random.default_rng(0), len(masks))
    return template | {
        **{name: box[:, i] for i, name in enumerate(("bbox_x", "bbox_y", "bbox_w", "bbox_h"))},
        "area": area,
        "predicted_iou": predicted_iou,
        "counts": [rle["counts"].decode() for rle in rles],
        **(crops or {}),
    }


def rectangle(x, y, w, h):
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[y : y + h, x : x + w] = True
    return mask
