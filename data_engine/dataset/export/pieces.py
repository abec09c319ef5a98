"""A dataset cut into pieces that are exported one by one: the same cut in every run, whatever the workers do.

A piece is a run of rows of the images table with a given number of images that have masks. It is the unit of parallel
work and of resuming; formats of one file a piece name the file by its index.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data_engine.dataset.commits import CommitRecord
from data_engine.dataset.reader import DatasetImage, MaskDataset
from data_engine.dataset.schema import IMAGES


@dataclass(frozen=True, slots=True)
class Span:
    """Rows `start` to `stop` of a committed slice."""

    record: CommitRecord
    start: int
    stop: int
    offset: int | None = None  # where in a tar the slice begins, if that is known


@dataclass(frozen=True, slots=True)
class Piece:
    """Rows that are exported together. Numbers count the images with masks, from 1; masks are numbered likewise."""

    index: int
    spans: tuple[Span, ...]
    first_number: int
    first_mask: int

    @property
    def rows(self) -> int:
        return sum(span.stop - span.start for span in self.spans)


@dataclass(frozen=True, slots=True)
class Slices:
    """The committed slices of a dataset, to be found by the number of a row."""

    whole: tuple[Span, ...]
    firsts: np.ndarray  # int64: the number of each one's first row

    @classmethod
    def of(cls, dataset: MaskDataset) -> Slices:
        spans = []
        before: CommitRecord | None = None
        for record in dataset.commits:
            follows = before is not None and before.shard == record.shard and before.slice == record.slice - 1
            offset = before.next_offset if before is not None and follows else None
            spans.append(Span(record, 0, record.images.rows, offset))
            before = record
        return cls(tuple(spans), np.cumsum([0, *(span.stop for span in spans)])[:-1])

    def between(self, start: int, stop: int) -> Iterator[Span]:
        """The rows `start` to `stop` of the dataset."""
        for index in range(max(int(np.searchsorted(self.firsts, start, "right")) - 1, 0), len(self.whole)):
            span, first = self.whole[index], int(self.firsts[index])
            if first >= stop:
                return
            begin, end = max(start - first, 0), min(stop - first, span.stop)
            if begin < end:
                yield replace(span, start=begin, stop=end)


def cut(dataset: MaskDataset, images_per_piece: int, limit: int | None = None) -> list[Piece]:
    """The pieces of the first `limit` images (all by default) of a dataset. Reads columns of the images table.

    Rows that a deduplicated dataset leaves out lie within pieces, and count for nothing.
    """
    n_masks, ok, kept = _rows(dataset)
    if limit is not None:
        end = np.flatnonzero(kept)[:limit][-1:] + 1
        n_masks, ok, kept = (column[: int(end.sum())] for column in (n_masks, ok, kept))
    exportable = np.flatnonzero(kept & ok & (n_masks > 0))
    bounds = [0, *exportable[images_per_piece::images_per_piece].tolist(), len(n_masks)]
    masks_before = np.concatenate([[0], np.cumsum(n_masks)])  # those left out leave gaps
    slices = Slices.of(dataset)
    return [
        Piece(
            index=index,
            spans=tuple(slices.between(start, stop)),
            first_number=index * images_per_piece + 1,
            first_mask=int(masks_before[start]) + 1,
        )
        for index, (start, stop) in enumerate(pairwise(bounds))
    ]


def span_images(dataset: MaskDataset, span: Span) -> Iterator[tuple[int, DatasetImage]]:
    """The images of a span, each with its row within the slice. A deduplicated dataset leaves some out.

    Masks are streamed, and only those of the span are read: several pieces share a slice.
    """
    images = enumerate(dataset.rows(span.record, span.start, span.stop), span.start)
    return ((row, image) for row, image in images if image.image_id not in dataset.left_out)


def exportable_rows(dataset: MaskDataset) -> np.ndarray:
    """Numbers of the rows that have masks and are not left out, int64."""
    n_masks, ok, kept = _rows(dataset)
    return np.flatnonzero(kept & ok & (n_masks > 0))


def _rows(dataset: MaskDataset) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of every row, those left out as duplicates included: how many masks, whether it is ok, whether it is kept."""
    columns = ["status", "n_masks", *(["image_id"] if dataset.dedup is not None else [])]
    none = IMAGES.empty_table().select(columns)
    table = pa.concat_tables([none, *(rows.replace_schema_metadata() for rows in dataset.images_by_slice(columns))])
    kept = np.ones(table.num_rows, bool)
    if dataset.dedup is not None:
        kept = ~pc.is_in(table["image_id"], pa.array(list(dataset.left_out), pa.string())).to_numpy()
    ok = pc.equal(table["status"].cast(pa.string()), "ok").to_numpy()
    return table["n_masks"].to_numpy().astype(np.int64), ok, kept
