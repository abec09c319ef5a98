"""Datasets to draw from, whose masks have a known right verdict."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import pyarrow as pa
from dataset.small_dataset import FINGERPRINT, HEIGHT, WIDTH, image_row, write_manifest

from data_engine.dataset.commits import CommitRecord, Part, Totals
from data_engine.dataset.reader import MaskDataset
from data_engine.dataset.schema import SCHEMA_VERSION
from data_engine.dataset.writer import SliceWriter
from data_engine.human_audit.answers import Answer
from data_engine.human_audit.sample import Sample

COUNTS = "0P1"  # some run length: nobody decodes it here
Images = dict[str, np.ndarray]  # id -> Mx2 float32: stability and predicted IoU of its masks


def random_images(images: int, seed: int = 0) -> Images:
    """Of 0 to 12 masks each, better in some images than in others."""
    rng = np.random.default_rng(seed)
    found = {}
    for number in range(images):
        quality = rng.uniform(0.6, 1)
        found[f"{number:04d}.jpg"] = rng.uniform(quality - 0.2, quality, (rng.integers(0, 13), 2)).astype(np.float32)
    return found


def write(root: Path, images: Images, slices: Sequence[Sequence[str]], complete: bool = True) -> MaskDataset:
    """A dataset of one shard, with these ids in these slices."""
    for folder in ("_plan", "_commits", "images", "masks"):
        (root / folder).mkdir(parents=True)
    (root / "_plan/job.json").write_text(json.dumps({"schema_version": SCHEMA_VERSION, "fingerprint": FINGERPRINT}))
    records, first = [], 0
    for index, ids in enumerate(slices):
        writer = SliceWriter({"fingerprint": FINGERPRINT})
        for image_id in ids:
            writer.add(image_row(image_id, "a" * 16, len(images[image_id])), _masks(images[image_id]))
        parts = {}
        for folder, file in zip(("images", "masks"), writer.finish(), strict=True):
            name = f"{folder}/{index}.parquet"
            (root / name).write_bytes(file.data)
            digest = hashlib.sha256(file.data).hexdigest()
            parts[folder] = Part(file=name, size=len(file.data), sha256=digest, rows=file.rows)
        totals = Totals(images=len(ids), masks=sum(len(images[image_id]) for image_id in ids))
        record = CommitRecord(
            fingerprint=FINGERPRINT, shard="a" * 16, slice=index, first_image=first, final=index == len(slices) - 1,
            totals=totals, owner="o" * 32, attempt="1", **parts,
        )  # fmt: skip
        (root / record.file).write_bytes(record.to_json())
        records.append(record)
        first += len(ids)
    if complete:
        write_manifest(root, records)
    return MaskDataset(str(root))


def _masks(scores: np.ndarray) -> dict:
    count = len(scores)
    constant = {
        "height": HEIGHT, "width": WIDTH, "crop_x": 0, "crop_y": 0, "crop_w": WIDTH, "crop_h": HEIGHT, "crop_layer": 0,
        "bbox_x": 1, "bbox_y": 1, "bbox_w": 2, "bbox_h": 2, "area": 4, "point_x": 1.5, "point_y": 1.5, "counts": COUNTS,
    }  # fmt: skip
    return {
        **{name: [value] * count for name, value in constant.items()},
        "stability_score": scores[:, 0],
        "predicted_iou": scores[:, 1],
    }


def truly_good(table: pa.Table) -> np.ndarray:
    """The right verdict on each mask, bool: good scores help, luck decides too."""
    luck = [
        int.from_bytes(hashlib.sha256(f"{image_id} {mask_id}".encode()).digest()[:4], "big") / 2**32
        for image_id, mask_id in zip(table["image_id"].to_pylist(), table["mask_id"].to_pylist(), strict=True)
    ]
    return np.array(luck) < table["stability_score"].to_numpy() ** 2


def judge(
    sample: Sample, verdict: Callable[[int, bool], str], who: str = "A", seconds: float = 2.0, masks: int | None = None
) -> list[Answer]:
    """Answers to the first `masks` of a sample. verdict: (position, truly good) -> verdict."""
    good = truly_good(sample.masks).tolist()
    return [
        Answer(
            image_id=image_id,
            mask_id=mask_id,
            who=who,
            verdict=verdict(position, good[position]),
            seconds=seconds,
            answered_at=datetime.now(timezone.utc),
            number=position,
        )
        for position, (image_id, mask_id) in enumerate(sample.keys[:masks])
    ]


def rightly(_: int, good: bool) -> str:
    return "accept" if good else "reject"
