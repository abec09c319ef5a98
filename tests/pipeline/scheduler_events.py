"""Schedulers, and what their workers say, in few words."""

from __future__ import annotations

from dataclasses import replace

from data_engine.dataset.commits import CommitRecord, Part, Totals
from data_engine.pipeline.events import ImageDone, ImageStarted, ShardFailed, SliceCommitted
from data_engine.pipeline.scheduler import Assign, Command, Policy, Scheduler, ShardTask

POLICY = Policy(speculate=None)
NO_PART = Part(file="", size=0, sha256="", rows=0)


def scheduler(shards: str = "abc", policy: Policy = POLICY, images: int | None = None) -> Scheduler:
    return Scheduler([ShardTask(shard, images) for shard in shards], policy)


def one_at_a_time(**settings: float) -> Policy:
    return replace(POLICY, max_in_flight=1, **settings)


def started(shard: str, image: str = "1") -> ImageStarted:
    return ImageStarted(shard, image)


def done(shard: str, image: str = "1") -> ImageDone:
    return ImageDone(shard, image, 0, None, None, 1.0)


def committed(shard: str, images: int, final: bool = False) -> SliceCommitted:
    return SliceCommitted(
        CommitRecord(
            fingerprint="",
            shard=shard,
            slice=0,
            first_image=0,
            final=final,
            images=NO_PART,
            masks=NO_PART,
            totals=Totals(images=images),
            owner="",
            attempt="",
        )
    )


def failed(shard: str, permanent: bool = False) -> ShardFailed:
    return ShardFailed(shard, "s3://in/shard", "cannot be read", permanent)


def store_failed(shard: str, lasting: bool = False) -> ShardFailed:
    return ShardFailed(shard, "s3://in/shard", "the store says nothing", permanent=lasting, of_store=True)


def assigned(commands: list[Command]) -> list[tuple[str, str]]:
    return [(command.worker, command.shard) for command in commands if isinstance(command, Assign)]
