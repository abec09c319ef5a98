"""The images of a dataset once more, with their bytes: for exports and pictures.

The inputs are read again in the order of the rows, and each image's sha256 is compared with the one that was stored, so
masks never end up on another picture.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

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


@dataclass(frozen=True, slots=True)
class Originals:
    """The original files of a dataset's images. Can be sent to another process, live links included."""

    shards: Mapping[str, Shard]
    settings: InputSettings

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
        return cls({planned.id: planned.shard for planned in plan.shards}, input_settings(plan))

    @property
    def decoder(self) -> Pictures:
        return Pictures(self.settings)

    def only(self, spans: Sequence[Span]) -> Originals:
        """What is needed for these spans alone, which is less to send."""
        return replace(self, shards={span.record.shard: self.shards[span.record.shard] for span in spans})

    def read(self, dataset: MaskDataset, span: Span) -> Iterator[tuple[DatasetImage, bytes | None]]:
        """The images of a span with their encoded bytes; None for an original that is gone or not the same any more."""
        encoded = self._encoded(span)
        try:
            original: EncodedImage | None = None
            for row, image in span_images(dataset, span):
                wanted = span.record.first_image + row
                while encoded is not None and (original is None or original.index < wanted):
                    try:
                        original = next(encoded)
                    except (StopIteration, SourceError, StorageError, FileNotFoundError):
                        encoded = None  # the rest of the shard cannot be had
                found = original is not None and original.index == wanted and original.data is not None
                data = original.data if found and original is not None else None
                yield image, data if data is not None and sha256(data) == image.row["sha256"] else None
        finally:
            if encoded is not None:
                encoded.close()

    def _encoded(self, span: Span) -> Generator[EncodedImage, None, None] | None:
        shard = self.shards[span.record.shard]
        if shard.kind == "tar":  # which can be entered where a slice begins
            return read_shard(shard, self.settings, start=span.record.first_image, offset=span.offset)
        return read_shard(shard, self.settings, start=span.record.first_image + span.start)
