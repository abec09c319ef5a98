"""What a shard runner reports while it works. Outcomes are types, so that whoever listens cannot forget one."""

from __future__ import annotations

from dataclasses import dataclass

from data_engine.dataset.commits import CommitRecord


@dataclass(frozen=True, slots=True)
class ImageStarted:
    """The model begins with this image: if the process dies now, this is the image it held."""

    shard: str
    image_id: str


@dataclass(frozen=True, slots=True)
class ImageDone:
    shard: str
    image_id: str
    masks: int
    error_type: str | None
    error_message: str | None
    seconds: float


@dataclass(frozen=True, slots=True)
class SliceCommitted:
    record: CommitRecord


@dataclass(frozen=True, slots=True)
class SliceLost:
    """Another writer committed this slice first. The rest of the shard was left to it."""

    shard: str
    slice: int


@dataclass(frozen=True, slots=True)
class ShardFailed:
    """The shard could not be read to its end. What was committed stands; a later run goes on from there."""

    shard: str
    uri: str
    message: str
    permanent: bool = False  # trying again would not help
    of_store: bool = False  # nothing is wrong with the shard: its store does not answer or, if permanent, refuses


@dataclass(frozen=True, slots=True)
class ShardDone:
    """The shard's last slice is committed, by whomever."""

    shard: str


@dataclass(frozen=True, slots=True)
class BatchShrunk:
    """Memory ran out: from now on fewer prompts go through the model at a time. The masks stay the same."""

    points: int


Event = ImageStarted | ImageDone | SliceCommitted | SliceLost | ShardFailed | ShardDone | BatchShrunk
