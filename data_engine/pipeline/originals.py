"""The images of a dataset once more, with their bytes: for exports and pictures.

The inputs are read again in the order of the rows, and each image's sha256 is compared with the one that was stored, so
masks never end up on another picture.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from data_engine.dataset.commits import PLAN_FILE
from data_engine.dataset.export.pieces import Span, span_images
from data_engine.dataset.reader import DatasetImage, MaskDataset
from data_engine.errors import DatasetError, SourceError, StorageError, UsageError
from data_engine.images.fingerprint import sha256
from data_engine.images.settings import InputSettings
from data_engine.images.shard import EncodedImage, Shard
from data_engine.images.sources import list_shards, read_shard
from data_engine.pipeline.pictures import Pictures

if TYPE_CHECKING:
    from data_engine.pipeline.plan import JobPlan


def input_settings(plan: JobPlan) -> InputSettings:
    """The settings that the plan's images were read with."""
    from data_engine.config import resolve

    return resolve({"input": plan.config["input"]}, "the dataset's plan").input


def relinked(plan: JobPlan, input_uri: str | None = None) -> JobPlan:
    """`plan` with the signed links that its input takes, if any: listed anew where the plan says, or at `input_uri`.

    Without `input_uri`, an input that cannot be listed leaves the links out, and the originals behind them are missing.
    Raises UsageError for an `input_uri` that is not the plan's but for its signature.
    """
    from data_engine.pipeline.plan import PlannedShard, input_name, with_links  # it brings torch along

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


def is_part(plan: JobPlan) -> bool:
    """Whether the dataset is a replay that left images out, so that in tars and Parquet files others lie between."""
    return plan.replayed_from is not None and plan.replayed_from.get("keep_rejects") != 1


def original_of(shard: Shard, part: bool, row: Mapping[str, Any], number: int) -> Callable[[EncodedImage], bool]:
    """Which of a shard's images is that of a row, the shard's `number`th. part: `is_part`."""
    if part and shard.kind != "files":  # whose listed files are those of the dataset alone
        return lambda image: image.uri == row["uri"]
    return lambda image: image.index == number


@dataclass(frozen=True, slots=True)
class Originals:
    """The original files of a dataset's images. Can be sent to another process, live links included."""

    shards: Mapping[str, Shard]
    settings: InputSettings
    part: bool = False  # as `is_part` says

    @classmethod
    def of_dataset(cls, root: str, input_uri: str | None = None) -> Originals:
        """input_uri: the dataset's input, signed anew, where it was a signed link. Raises DatasetError."""
        from data_engine.pipeline.plan import read_plan

        plan = read_plan(root)
        if plan is None:
            raise DatasetError(f"no dataset at {root}: it has no {PLAN_FILE}")
        return cls.of(relinked(plan, input_uri))

    @classmethod
    def of(cls, plan: JobPlan) -> Originals:
        """plan: of the dataset, `relinked` where its input takes signed links."""
        return cls({planned.id: planned.shard for planned in plan.shards}, input_settings(plan), is_part(plan))

    @property
    def decoder(self) -> Pictures:
        return Pictures(self.settings)

    def only(self, spans: Sequence[Span]) -> Originals:
        """What is needed for these spans alone, which is less to send."""
        return replace(self, shards={span.record.shard: self.shards[span.record.shard] for span in spans})

    def read(self, dataset: MaskDataset, span: Span) -> Iterator[tuple[DatasetImage, bytes | None]]:
        """The images of a span with their encoded bytes; None for an original that is gone or not the same any more."""
        shard, encoded = self.shards[span.record.shard], self._encoded(span)
        try:
            for row, image in span_images(dataset, span):
                found = original_of(shard, self.part, image.row, span.record.first_image + row)
                data = _next_data(encoded, found)
                yield image, data if data is not None and sha256(data) == image.row["sha256"] else None
        finally:
            encoded.close()

    def _encoded(self, span: Span) -> Generator[EncodedImage, None, None]:
        """From the span's first image or before: that of a part of the images lies at its number or after."""
        shard = self.shards[span.record.shard]
        if shard.kind == "tar":  # which can be entered where a slice begins
            return read_shard(shard, self.settings, start=span.record.first_image, offset=span.offset)
        return read_shard(shard, self.settings, start=span.record.first_image + span.start)


def _next_data(encoded: Iterator[EncodedImage], found: Callable[[EncodedImage], bool]) -> bytes | None:
    """Of the next image that is the one; None from where the rest of the shard cannot be had."""
    try:
        original = next(filter(found, encoded), None)
    except (SourceError, StorageError, FileNotFoundError):
        return None
    return original.data if original is not None else None
