"""A small valid dataset built file by file, for the tests that read, check and damage one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco

from data_engine.dataset.coco_runs import area_and_box
from data_engine.dataset.commits import CommitRecord, Part, Totals
from data_engine.dataset.manifest import make_manifest
from data_engine.dataset.schema import SCHEMA_VERSION
from data_engine.dataset.writer import FinishedFile, SliceWriter

FINGERPRINT = "f" * 64
SHARDS = ("a" * 16, "b" * 16)
HEIGHT, WIDTH = 40, 60


def build(root: Path, slices: int = 2, images: int = 3, complete: bool = True) -> list[CommitRecord]:
    """Two shards of `slices` slices of `images` images; the second image of every slice failed."""
    rng = np.random.default_rng(0)
    (root / "_plan").mkdir(parents=True)
    (root / "_commits").mkdir()
    (root / "_plan/job.json").write_text(json.dumps({"schema_version": SCHEMA_VERSION, "fingerprint": FINGERPRINT}))
    records = []
    for shard in SHARDS:
        for index in range(slices):
            writer = SliceWriter({"fingerprint": FINGERPRINT})
            masks = 0
            for i in range(images):
                name = f"{shard[0]}/{index}-{i}.jpg"
                count = 0 if i == 1 else i + 2
                writer.add(image_row(name, shard, count, failed=i == 1), mask_columns(rng, count))
                masks += count
            files = writer.finish()
            totals = Totals(
                images=images,
                failed=1,
                masks=masks,
                candidates=masks + 5 * (images - 1),
                rejected_iou=5 * (images - 1),
                errors={"corrupt": 1},
            )
            record = CommitRecord(
                fingerprint=FINGERPRINT,
                shard=shard,
                slice=index,
                first_image=index * images,
                final=index == slices - 1,
                images=_write(root, "images", f"{shard}-{index}", files[0]),
                masks=_write(root, "masks", f"{shard}-{index}", files[1]),
                totals=totals,
                owner="o" * 32,
                attempt="1",
            )
            (root / record.file).write_bytes(record.to_json())
            records.append(record)
    if complete:
        write_manifest(root, records)
    return records


def one_slice(root: Path, images: Sequence[tuple[str, dict]], said: int | None = None) -> CommitRecord:
    """A dataset of one slice, of images with their masks. Each says that it has `said` of them, if that is given."""
    writer = SliceWriter({"fingerprint": FINGERPRINT})
    for name, masks in images:
        writer.add(image_row(name, SHARDS[0], len(masks["counts"]) if said is None else said), masks)
    files = writer.finish()
    (root / "_plan").mkdir(parents=True)
    (root / "_plan/job.json").write_text(json.dumps({"schema_version": SCHEMA_VERSION, "fingerprint": FINGERPRINT}))
    record = CommitRecord(
        fingerprint=FINGERPRINT,
        shard=SHARDS[0],
        slice=0,
        first_image=0,
        final=True,
        images=_write(root, "images", "0", files[0]),
        masks=_write(root, "masks", "0", files[1]),
        totals=Totals(images=len(images), masks=files[1].rows),
        owner="o" * 32,
        attempt="1",
    )
    write_manifest(root, [record])
    return record


def write_manifest(root: Path, records: list[CommitRecord], **changes: Any) -> None:
    """`changes`: fields of the manifest that are to be something else."""
    manifest, table = make_manifest(FINGERPRINT, records, "o" * 32)
    (root / "_manifest").mkdir(exist_ok=True)
    (root / manifest.commits.file).write_bytes(table)
    (root / "_manifest.json").write_bytes(replace(manifest, **changes).to_json())


def image_row(image_id: str, shard: str, masks: int, failed: bool = False) -> dict:
    return {
        "image_id": image_id,
        "uri": f"photos/{image_id}",
        "shard": shard,
        "sha256": hashlib.sha256(image_id.encode()).digest(),
        "phash": None if failed else 2**63 + 1,
        "width": None if failed else WIDTH,
        "height": None if failed else HEIGHT,
        "n_masks": masks,
        "n_candidates": 0 if failed else masks + 5,
        "n_rejected_iou": 0 if failed else 5,
        "n_rejected_stability": 0,
        "n_rejected_edge": 0,
        "n_rejected_nms": 0,
        "n_rejected_area": 0,
        "status": "failed" if failed else "ok",
        "error_type": "corrupt" if failed else None,
        "error_message": "the file is damaged" if failed else None,
        "decode_ms": 1.5,
        "generate_ms": None if failed else 20.0,
    }


def random_mask(rng: np.random.Generator) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), np.uint8, order="F")
    y, x = rng.integers(0, HEIGHT - 8), rng.integers(0, WIDTH - 8)
    mask[y : y + rng.integers(2, 8), x : x + rng.integers(2, 8)] = 1
    return mask


def mask_columns(rng: np.random.Generator, count: int) -> dict | None:
    if not count:
        return None
    rles = [coco.encode(random_mask(rng)) for _ in range(count)]
    area, boxes = area_and_box(rles)
    constant = {"height": HEIGHT, "width": WIDTH, "crop_x": 0, "crop_y": 0, "crop_w": WIDTH, "crop_h": HEIGHT}
    return {
        **{name: [value] * count for name, value in constant.items()},
        **{name: boxes[:, i] for i, name in enumerate(("bbox_x", "bbox_y", "bbox_w", "bbox_h"))},
        "area": area,
        "predicted_iou": rng.uniform(0.8, 1, count),
        "stability_score": rng.uniform(0.9, 1, count),
        "point_x": boxes[:, 0] + 0.5,
        "point_y": boxes[:, 1] + 0.5,
        "crop_layer": [0] * count,
        "counts": [rle["counts"].decode() for rle in rles],
    }


def _write(root: Path, folder: str, name: str, file: FinishedFile) -> Part:
    (root / folder).mkdir(exist_ok=True)
    path = root / folder / f"{name}.parquet"
    path.write_bytes(file.data)
    return Part(
        file=f"{folder}/{name}.parquet",
        size=len(file.data),
        sha256=hashlib.sha256(file.data).hexdigest(),
        rows=file.rows,
    )
