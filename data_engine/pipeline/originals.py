"""The images of a dataset once more, with their bytes: for exports and pictures.

The inputs are read again in the order of the rows, and each image's sha256 is compared with the one that was stored, so
masks never end up on another picture.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from data_engine.config import resolve
from data_engine.dataset.commits import CommitRecord
from data_engine.dataset.reader import DatasetImage, MaskDataset
from data_engine.errors import SourceError, StorageError, UsageError
from data_engine.images.fingerprint import sha256
from data_engine.images.settings import InputSettings
from data_engine.images.sources import list_shards, read_shard
from data_engine.pipeline.plan import JobPlan, PlannedShard, input_name, with_links


def input_settings(plan: JobPlan) -> InputSettings:
    """The settings that the plan's images were read with."""
    return resolve({"input": plan.config["input"]}, "the dataset's plan").input


def relinked(plan: JobPlan, input_uri: str | None = None) -> JobPlan:
    """`plan` with the signed links that its input takes, if any: listed anew where the plan says, or at `input_uri`.

    Without `input_uri`, an input that cannot be listed leaves the links out, and the originals behind them are missing.
    Raises UsageError for an `input_uri` that is not the plan's but for its signature.
    """
    if input_uri is not None and input_name(input_uri) != plan.input:
        raise UsageError(f"{input_name(input_uri)}: the dataset was made from another input, {plan.input}")
    if not plan.lacks_links:
        return plan
    try:
        shards = list_shards(input_uri or plan.input, input_settings(plan)).shards
    except (SourceError, StorageError):
        if input_uri is not None:
            raise
        return plan
    return with_links(plan, replace(plan, shards=tuple(PlannedShard(shard) for shard in shards)))


def with_originals(dataset: MaskDataset, plan: JobPlan) -> Iterator[tuple[DatasetImage, bytes | None]]:
    """Every image of the dataset with its encoded bytes; None for an original that is gone or not the same any more."""
    shards = {planned.id: planned.shard for planned in plan.shards}
    settings = input_settings(plan)
    before: CommitRecord | None = None
    for record in dataset.commits:
        follows = before is not None and before.shard == record.shard and before.slice == record.slice - 1
        offset = before.next_offset if before is not None and follows else None
        encoded = read_shard(shards[record.shard], settings, start=record.first_image, offset=offset)
        readable = True
        for image in dataset.slice(record):
            data = None
            if readable:
                try:
                    original = next(encoded, None)
                    data = original.data if original is not None else None
                except (SourceError, StorageError, FileNotFoundError):
                    readable = False
            yield image, data if data is not None and sha256(data) == image.row["sha256"] else None
        encoded.close()
        before = record
