"""Of the images that keep what the filters rejected: which they are, and whether all of it is there."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from data_engine.dataset.commits import Part
from data_engine.dataset.reader import MaskDataset
from data_engine.dataset.schema import REJECTS

_REASONS = ("iou", "stability", "edge", "area", "nms")
_ONLY_COUNTED = ("iou",)  # those of them that lie below the floor have no row


def keeps_rejects(image_id: str, share: float) -> bool:
    """By a hash of the id, so the same images in every run. Those of a smaller share are among those of a larger."""
    digest = hashlib.sha256(image_id.encode()).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64


def rejects_share(dataset: MaskDataset) -> float:
    """The share of its images that keep their rejects, by its plan; 0 where the plan knows no such setting."""
    return float(dataset.plan.get("config", {}).get("output", {}).get("keep_rejects", 0.0))


def reject_problems(images: pa.Table, rejects: pa.Table, share: float) -> list[str]:
    """What is wrong with the rejects of a slice, one sentence each. Its run lengths are not looked at."""
    columns = ["image_id", "candidate_id", "reason", "mask_id"]
    found: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
    order: list[str] = []
    for row in rejects.select(columns).to_pylist():
        if not order or order[-1] != row["image_id"]:
            order.append(row["image_id"])
        found[row["image_id"]].append(row)
    expected = {row["image_id"]: row for row in images.to_pylist() if keeps_rejects(row["image_id"], share)}
    problems = []
    if order != [image_id for image_id in expected if image_id in found]:
        problems.append("its rows are not those of the images that keep their rejects, in their order")
    for image_id, image in expected.items():
        if wrong := _miscounted(image, found.get(image_id, [])):
            problems.append(f"image {image_id!r}: {wrong}")
    return problems


def _miscounted(image: dict[str, Any], rows: list[dict[str, Any]]) -> str | None:
    if [row["candidate_id"] for row in rows] != list(range(len(rows))):
        return "candidate_id out of order"
    masks = [row["mask_id"] for row in rows if row["reason"] is None]
    if sorted(masks, key=lambda number: -1 if number is None else number) != list(range(image["n_masks"])):
        return f"its rows without a reason are not its {image['n_masks']} masks"
    counts = Counter(row["reason"] for row in rows)
    for reason in _REASONS:
        said = image[f"n_rejected_{reason}"]
        if counts[reason] > said or (counts[reason] < said and reason not in _ONLY_COUNTED):
            return f"{counts[reason]} rows of reason {reason}, the image says {said}"
    return None


def reject_rows(dataset: MaskDataset, part: Part) -> Iterator[tuple[str, pa.Table]]:
    """(image id, its rows of the rejects table) one after another, streamed. Raises DatasetError as `batches` does."""
    held: pa.Table = REJECTS.empty_table()
    for batch in dataset.batches(part):
        held = pa.concat_tables([held, batch.cast(REJECTS)], promote_options="permissive")
        *whole, last = _starts(held)
        for start, stop in pairwise([*whole, last]):
            yield held["image_id"][start].as_py(), held.slice(start, stop - start)
        held = held.slice(last)
    if held.num_rows:
        yield held["image_id"][0].as_py(), held


def _starts(rows: pa.Table) -> list[int]:
    """Where the rows of each image begin; of rows that there are."""
    ids = rows["image_id"].combine_chunks()
    return [0, *(pc.indices_nonzero(pc.not_equal(ids[1:], ids[:-1])).to_numpy() + 1).tolist()]
