"""An export as a job: pieces in parallel, finished ones skipped, each counted when all of its files are there.

DEST/_export.json names the dataset and the parameters; DEST/_export/<piece>.json is written last, when the files of a
piece are whole, and holds its counts.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from typing import Any

from data_engine.dataset.export.destination import put_bytes
from data_engine.dataset.export.filters import MaskFilter
from data_engine.dataset.export.format import STATE_FOLDER, Context, ExportImage, Finished, Format, PieceTarget
from data_engine.dataset.export.labels import categories_of
from data_engine.dataset.export.pieces import Piece, Span, cut, span_images
from data_engine.dataset.export.pool import in_processes
from data_engine.dataset.export.report import ExportReport
from data_engine.dataset.export.source import Source
from data_engine.dataset.export.state import read_reports, settle_state
from data_engine.dataset.reader import DatasetImage, MaskDataset
from data_engine.storage import join


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportJob:
    """A dataset, a destination and a format."""

    root: str
    destination: str
    format: Format
    source: Source | None = None  # None for formats that need no originals
    masks: MaskFilter = field(default_factory=MaskFilter)
    limit: int | None = None  # only the first so many images
    deduplicated: bool | str = False  # as in MaskDataset
    workers: int = 1

    def run(self, on_images: Callable[[int, int], None] = lambda done, total: None) -> tuple[ExportReport, list[str]]:
        """Exports what is not there yet. Returns the counts of the whole, and what the format has to say.

        on_images is told how many of how many rows are done. Pieces that lacked originals are tried again.
        Raises DatasetError, StorageError, UsageError for a destination that holds another export.
        """
        dataset = MaskDataset(self.root, self.deduplicated)
        version = dataset.dedup.version if dataset.dedup else None
        pieces = cut(dataset, self.format.images_per_piece, self.limit)
        parameters = self._parameters(version)
        categories = settle_state(
            self.destination,
            dataset,
            parameters,
            len(pieces),
            lambda: self._categories(dataset),
        )
        reports = read_reports(self.destination)
        done = {index for index, report in reports.items() if not report.missing}
        left = [piece for piece in pieces if piece.index not in done]
        rows, rows_left = (sum(piece.rows for piece in some) for some in (pieces, left))
        context = Context(
            decoder=self.source.decoder if self.source is not None else None,
            categories=categories,
            pieces=len(pieces),
            plan=dataset.plan,
        )
        on_images(rows - rows_left, rows)
        same = replace(self, deduplicated=version or False)  # though there be a newer version by then
        for index, report in same._reports(left, context, lambda count: on_images(rows - rows_left + count, rows)):
            reports[index] = report
        whole = ExportReport.sum(reports.values())
        lines = self.format.finish(
            Finished(
                destination=self.destination,
                plan=dataset.plan,
                parameters=parameters,
                categories=categories,
                reports=[reports[piece.index] for piece in pieces],
                total=whole,
            )
        )
        return whole, lines

    def _categories(self, dataset: MaskDataset) -> tuple[str, ...]:
        if not self.format.has_categories:
            return ()
        return categories_of(dataset)

    def _parameters(self, version: str | None) -> dict[str, Any]:
        """What decides the content of the export. version: of the duplicates."""
        return {
            "format": self.format.name,
            **asdict(self.format),  # type: ignore[call-overload]
            **asdict(self.masks),
            "limit": self.limit,
            "deduplicated": version,
        }

    def _reports(
        self, pieces: list[Piece], context: Context, on_count: Callable[[int], None]
    ) -> Iterator[tuple[int, ExportReport]]:
        workers = min(self.workers, len(pieces))
        if workers > 1:
            tasks = ((self._for(piece), piece, context) for piece in pieces)
            for (_, piece, _), report in in_processes(export_piece, tasks, workers, on_count):
                yield piece.index, report
            return
        open_dataset.cache_clear()  # it may have grown, or been deduplicated, since
        counted = 0

        def count() -> None:
            nonlocal counted
            counted += 1
            on_count(counted)

        for piece in pieces:
            yield piece.index, export_piece((self, piece, context), count)

    def _for(self, piece: Piece) -> ExportJob:
        return self if self.source is None else replace(self, source=self.source.only(piece.spans))


def export_piece(task: tuple[ExportJob, Piece, Context], count: Callable[[], None]) -> ExportReport:
    """Writes one piece, and then the record that it is there. `count` is called for each row."""
    job, piece, context = task
    report = ExportReport()
    target = PieceTarget(job.destination, piece.index, report)
    job.format.write(_taken(job, piece, report, count), target, context)
    record = json.dumps(report.to_dict(), indent=1).encode() + b"\n"
    put_bytes(join(job.destination, STATE_FOLDER, f"{piece.index:06d}.json"), record)
    return report


def _taken(job: ExportJob, piece: Piece, report: ExportReport, count: Callable[[], None]) -> Iterator[ExportImage]:
    """The images of a piece that can be written; the others are counted."""
    dataset = open_dataset(job.root, job.deduplicated)
    number, first_mask = piece.first_number, piece.first_mask
    for span in piece.spans:
        for image, data in _rows(job, dataset, span):
            count()
            if image.row["status"] == "failed":
                report.failed += 1
                continue
            if not len(image):
                report.without_masks += 1
                continue
            filtered = job.masks.apply(image)
            if not len(filtered):
                report.filtered_out += 1
            elif job.source is not None and data is None:
                report.missing += 1
            else:
                yield ExportImage(number, first_mask, filtered, data)
            number += 1
            first_mask += image.row["n_masks"]


def _rows(job: ExportJob, dataset: MaskDataset, span: Span) -> Iterator[tuple[DatasetImage, bytes | None]]:
    if job.source is not None:
        yield from job.source.read(dataset, span)
    else:
        for _, image in span_images(dataset, span):
            yield image, None


@lru_cache(maxsize=1)
def open_dataset(root: str, deduplicated: bool | str) -> MaskDataset:
    """The dataset, opened once a process."""
    return MaskDataset(root, deduplicated)
