"""One of data-engine's own datasets: its masks, and the photographs that they were made from."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import groupby
from typing import Any

import numpy as np
from rlemasklib import RLEMask

from data_engine.dataset.commits import CommitRecord
from data_engine.dataset.reader import DatasetImage, MaskDataset
from data_engine.errors import DatasetError, SourceError
from data_engine.images.decode import decode
from data_engine.images.fingerprint import sha256
from data_engine.images.shard import EncodedImage, ImageError, ShardDamaged
from data_engine.images.sources import read_shard
from data_engine.masks import rle
from data_engine.pipeline.originals import input_settings, is_part, original_of, relinked
from data_engine.pipeline.plan import read_plan
from data_engine.train.data.labelled import DataFilters
from data_engine.train.data.pool import Example, Pool, Portion

logger = logging.getLogger(__name__)

_WINDOW = 64  # encoded images held, where originals lie in a tar or Parquet file and come in its order


class DatasetMasks(Pool):
    """A unit is a committed slice: its rows are held while it is read. Images without a kept mask are not fetched."""

    kind = "dataset"

    def __init__(self, root: str, filters: DataFilters, deduplicated: bool | str = False) -> None:
        """deduplicated: as of MaskDataset. Raises DatasetError where there is no dataset, or no such version."""
        super().__init__(root, filters)
        plan = read_plan(root)
        if plan is None:
            raise DatasetError(f"no dataset at {root}: it has no _plan/job.json")
        self._dataset = MaskDataset(root, deduplicated)
        self._commits = self._dataset.commits
        if not self._commits:
            raise DatasetError(f"{root} has no masks yet: run `data-engine generate` to its end")
        if not self._dataset.complete:
            logger.warning("%s is not finished: training reads what is committed now", root)
        plan = relinked(plan)
        self._settings = input_settings(plan)
        self._part = is_part(plan)
        self._shards = {planned.id: planned.shard for planned in plan.shards}
        self._before = {(record.shard, record.slice + 1): record for record in self._commits}

    @property
    def window(self) -> int | None:
        return None if all(shard.kind == "files" for shard in self._shards.values()) else _WINDOW

    def sizes(self) -> Sequence[int]:
        return [record.totals.images for record in self._commits]

    def image_ids(self) -> Iterator[str]:
        for record in self._commits:
            yield from self._dataset.image_ids(record)

    def read(self, portion: Portion) -> Iterator[Example | None]:
        record = self._commits[portion.unit]
        images = list(self._dataset.slice(record))
        kept = {i: self._rows(images[i]) for i in portion.positions}
        wanted = {i for i, rows in kept.items() if self._wanted(images[i], rows)}
        originals = self._originals(record, {i: images[i].row for i in kept if i in wanted})
        for i, rows in kept.items():
            if i in wanted:
                image = images[i]
                yield Example(
                    image.image_id, partial(_masks, image, rows), partial(self._pixels, image, next(originals))
                )
            else:
                yield None

    def describe(self) -> dict[str, Any]:
        return {**super().describe(), "masks": self._dataset.totals.masks, "complete": self._dataset.complete}

    def _rows(self, image: DatasetImage) -> np.ndarray:
        """Numbers of the masks that pass what the columns say."""
        columns, filters = image.masks, self.filters
        area = columns["area"].to_numpy()
        pixels = (image.row["height"] or 0) * (image.row["width"] or 0)
        return np.flatnonzero(
            (columns["predicted_iou"].to_numpy() >= filters.min_predicted_iou)
            & (columns["stability_score"].to_numpy() >= filters.min_stability)
            & (area >= filters.min_area)
            & (area <= filters.max_area_fraction * pixels)
        )

    def _wanted(self, image: DatasetImage, rows: np.ndarray) -> bool:
        if image.row["status"] != "ok" or image.image_id in self._dataset.left_out:
            return False
        return len(rows) >= self.filters.min_masks_per_image

    def _originals(self, record: CommitRecord, rows: Mapping[int, Mapping[str, Any]]) -> Iterator[EncodedImage]:
        """Encoded images of a slice. rows: of the images table, by position; the answers come in that order."""
        shard = self._shards.get(record.shard)
        if shard is None:
            raise DatasetError(f"{self.source}: {record.file} is of a shard that its plan does not have")
        if shard.kind == "files":
            files = tuple(shard.files[record.first_image + i] for i in rows)
            yield from read_shard(replace(shard, files=files), self._settings)
            return
        before = self._before.get((record.shard, record.slice))
        offset = before.next_offset if before is not None else None
        stream = read_shard(shard, self._settings, start=record.first_image, offset=offset)
        for _, window in groupby(rows, lambda position: position // _WINDOW):
            numbers = {i: record.first_image + i for i in window}
            yield from _read_on(stream, {n: original_of(shard, self._part, rows[i], n) for i, n in numbers.items()})
        stream.close()

    def _pixels(self, image: DatasetImage, original: EncodedImage) -> np.ndarray:
        if original.data is None:
            raise original.error or SourceError(f"{original.uri} cannot be read any more")
        if sha256(original.data) != image.row["sha256"]:
            raise ImageError("changed", f"{original.uri} is not the file that was masked: its sha256 differs")
        return decode(original.data, self._settings)


def _read_on(
    stream: Iterator[EncodedImage], wanted: Mapping[int, Callable[[EncodedImage], bool]]
) -> Iterator[EncodedImage]:
    """The wanted images of a shard, by number, in the order asked for. One that is lost is an image with an error."""
    reason = "it is not in its shard any more"
    found: dict[int, EncodedImage] = {}
    left = sorted(wanted)
    try:
        while left:
            image = next(filter(wanted[left[0]], stream), None)
            if image is None:
                break
            found[left.pop(0)] = image
    except (ShardDamaged, FileNotFoundError) as error:
        reason = str(error)
    lost = ImageError("unreadable", reason)
    for number in wanted:
        yield found.get(number) or EncodedImage(number, "", f"image {number}", error=lost)


def _masks(image: DatasetImage, rows: np.ndarray) -> list[RLEMask]:
    height, width = image.row["height"], image.row["width"]
    counts = image.masks["counts"].take(rows).to_pylist()
    return [rle.from_counts_string(runs, height, width) for runs in counts]
