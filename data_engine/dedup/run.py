"""Deduplication of a dataset from end to end: find, decide, write a version beside it."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from data_engine import __version__
from data_engine.dataset.commits import Part
from data_engine.dataset.duplicates import DUPLICATES, MASK_DUPLICATES, DatasetState, DedupVersion
from data_engine.dataset.reader import MaskDataset
from data_engine.dedup.clusters import add_duplicates, add_members, counts_of
from data_engine.dedup.leakage import find_leaks
from data_engine.dedup.mask_duplicates import mask_duplicates
from data_engine.dedup.mask_store import MaskStore
from data_engine.dedup.near import Compared, cluster_hashes
from data_engine.dedup.scratch import open_scratch, read_images
from data_engine.dedup.settings import DedupSettings
from data_engine.dedup.versions import (
    check_writable,
    commit_version,
    discarded_on_failure,
    put_table,
    refuse_taken,
    write_local,
)
from data_engine.errors import UsageError
from data_engine.pipeline.commit import new_owner
from data_engine.sql.background import interruptible
from data_engine.storage import redact

if TYPE_CHECKING:
    import duckdb

    from data_engine.dedup.semantic import SemanticStage

_BATCH = 100_000  # rows on their way to a file

Report = Callable[[str, int, int | None], None]  # what is being done, how far, of how much


@dataclass(slots=True)
class DedupReport:
    """What was found, and the version that holds it."""

    dataset: DatasetState
    parameters: dict[str, Any]
    counts: dict[str, int] = field(default_factory=dict)
    timings: dict[str, float] = field(default_factory=dict)  # seconds a stage
    version: DedupVersion | None = None  # None: a dry run

    def as_json(self) -> dict[str, Any]:
        return {
            "version": self.version.version if self.version else None,
            "parameters": self.parameters,
            "counts": self.counts,
            "timings": self.timings,
        }


def deduplicate(
    root: str,
    settings: DedupSettings | None = None,
    *,
    version: str | None = None,
    dry_run: bool = False,
    against: str | None = None,
    on_progress: Report = lambda step, done, total: None,
) -> DedupReport:
    """Finds the duplicates of the dataset at `root` and writes them beside it as a version; the dataset stays as it is.

    version: its name; None: the next of v1, v2, …. dry_run: finds and counts, writes nothing. against: another
    dataset; the duplicates are then the images that it has too, and not those that are alike among themselves. The rows
    are a function of the committed images and of the parameters; with a semantic stage also of the originals that can
    be read. Raises DatasetError for a name that is taken.
    """
    settings = settings or DedupSettings()
    if against is not None and settings.engine == "ray":
        raise UsageError("a comparison with another dataset runs on one machine: leave out --engine ray")
    if against is not None and settings.semantic is not None:
        raise UsageError("a comparison with another dataset is by hashes alone: leave out --semantic")
    dataset = MaskDataset(root)
    if not dry_run:
        refuse_taken(root, version)
        check_writable(root)
    state = DatasetState.of(str(dataset.plan.get("fingerprint", "")), dataset.complete, dataset.commits)
    other = MaskDataset(against) if against is not None else None
    report = DedupReport(state, settings.parameters() | ({"against": redact(other.root)} if other else {}))
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=settings.temp_folder)))
        if other is None:
            files = {"duplicates": _images(dataset, settings, report, folder, dry_run, on_progress)}
        else:
            files = {"duplicates": _leaks(dataset, other, settings, report, folder, on_progress)}
        if settings.masks_iou is not None:
            with _timed(report, "masks"):
                path = folder / "masks.parquet"
                files["mask_duplicates"] = (
                    path,
                    _masks(dataset, settings, settings.masks_iou, report, path, not dry_run, on_progress),
                )
        if not dry_run:
            report.version = _commit(root, report, files, version)
    return report


def _images(
    dataset: MaskDataset,
    settings: DedupSettings,
    report: DedupReport,
    folder: Path,
    dry_run: bool,
    on_progress: Report,
) -> tuple[Path, int]:
    find = _members_on_ray if settings.engine == "ray" else _members_here
    stage = _semantic_stage(dataset, settings)
    with find(dataset, settings, report, on_progress) as connection:
        with _timed(report, "decide"):
            on_progress("choosing the images that stay", 0, None)
            interruptible(
                lambda: add_duplicates(connection, exact_only=settings.threshold is None), connection.interrupt
            )
        if stage is not None:
            with _timed(report, "semantic"):
                parameters, counts = stage.merge(connection, folder, not dry_run, on_progress)
            report.parameters["semantic"] = parameters
            report.counts |= counts
        report.counts |= interruptible(lambda: counts_of(connection, settings), connection.interrupt)
        return _written(connection, folder, report)


def _semantic_stage(dataset: MaskDataset, settings: DedupSettings) -> SemanticStage | None:
    if settings.semantic is None:
        return None
    from data_engine.dedup.semantic import SemanticStage

    return SemanticStage(dataset, settings.semantic)


def _leaks(
    dataset: MaskDataset,
    other: MaskDataset,
    settings: DedupSettings,
    report: DedupReport,
    folder: Path,
    on_progress: Report,
) -> tuple[Path, int]:
    on_progress("reading both images tables", 0, None)
    with open_scratch(dataset.duckdb(), settings) as connection, _timed(report, "compare"):

        def find() -> dict[str, int]:
            counts = {"images": len(dataset), "compared": read_images(connection)}
            return counts | find_leaks(
                connection, other, settings.threshold, lambda done, keys: on_progress("comparing hashes", done, keys)
            )

        report.counts |= interruptible(find, connection.interrupt)
        return _written(connection, folder, report)


@contextmanager
def _members_here(
    dataset: MaskDataset, settings: DedupSettings, report: DedupReport, on_progress: Report
) -> Iterator[duckdb.DuckDBPyConnection]:
    """A connection with the table `members`: the images of all clusters."""
    on_progress("reading the images table", 0, None)
    with open_scratch(dataset.duckdb(), settings) as connection:

        def compare() -> Compared:
            connection.execute("create table hashes as select distinct phash as h from images")
            compared = cluster_hashes(
                connection, settings.threshold or 0, lambda done, keys: on_progress("comparing hashes", done, keys)
            )
            add_members(connection, compared.clusters)
            return compared

        with _timed(report, "read"):
            images = interruptible(lambda: read_images(connection), connection.interrupt)
        with _timed(report, "compare"):
            compared = interruptible(compare, connection.interrupt)
        report.counts |= _compared(dataset, compared, images)
        yield connection


@contextmanager
def _members_on_ray(
    dataset: MaskDataset, settings: DedupSettings, report: DedupReport, on_progress: Report
) -> Iterator[duckdb.DuckDBPyConnection]:
    from data_engine.dedup.on_ray import find_members
    from data_engine.pipeline.ray_connection import connected

    with connected(settings.ray_address), open_scratch(dataset.duckdb(), settings) as connection:
        with _timed(report, "compare"):
            compared, images = find_members(
                dataset,
                connection,
                settings.threshold or 0,
                lambda done, keys: on_progress("comparing hashes", done, keys),
            )
        report.counts |= _compared(dataset, compared, images)
        yield connection


def _compared(dataset: MaskDataset, compared: Compared, images: int) -> dict[str, int]:
    found = {"hashes": compared.total, "bands": compared.bands, "keys": compared.keys}
    return {"images": len(dataset), "compared": images, **found}


def _written(connection: duckdb.DuckDBPyConnection, folder: Path, report: DedupReport) -> tuple[Path, int]:
    """The table of the duplicates as a file, and how many rows it has."""
    path = folder / "duplicates.parquet"
    names = ", ".join(f'"{name}"' for name in DUPLICATES.names)
    query = f"select {names} from duplicates order by cluster_id, keep desc, image_id"  # noqa: S608 - of this package

    def write() -> int:
        return write_local(path, DUPLICATES, connection.sql(query).to_arrow_reader(_BATCH), _metadata(report))

    return path, interruptible(write, connection.interrupt)


def _masks(
    dataset: MaskDataset,
    settings: DedupSettings,
    iou: float,
    report: DedupReport,
    path: Path,
    keep: bool,
    on_progress: Report,
) -> int:
    """Writes the table of the masks that go, and returns its rows. keep: what each slice had, for another run."""
    store = MaskStore(dataset.root, report.dataset.fingerprint, iou, path.parent)
    left = [record for record in dataset.commits if record not in store]

    def batches(found: Iterator[pa.Table]) -> Iterator[pa.RecordBatch]:
        for done, record in enumerate(dataset.commits):
            on_progress("comparing masks", done, len(dataset.commits))
            if record in store:
                table = store.rows(record)
            else:
                table = next(found)
                if keep:
                    store.add(record, table)
            yield from table.to_batches()

    def write(found: Iterator[pa.Table]) -> int:
        try:
            return write_local(path, MASK_DUPLICATES, batches(found), _metadata(report))
        finally:
            store.flush()  # also of a run that is interrupted

    if settings.engine == "ray":
        from data_engine.dedup import on_ray
        from data_engine.pipeline.ray_connection import connected

        with connected(settings.ray_address):
            rows = write(on_ray.mask_duplicates(dataset, left, iou))
    else:
        rows = write(mask_duplicates(dataset, left, iou, settings.processes))
    report.counts |= {"masks": dataset.totals.masks, "mask_duplicates": rows}
    return rows


def _commit(root: str, report: DedupReport, files: dict[str, tuple[Path, int]], version: str | None) -> DedupVersion:
    owner = new_owner()
    parts: dict[str, Part] = {}
    with discarded_on_failure(root) as put:
        for table, (path, rows) in files.items():
            parts[table] = put_table(root, path, f"{table}-{owner}", rows)
            put.append(parts[table])
    made = DedupVersion(
        version=version or "",
        dataset=report.dataset,
        parameters=report.parameters,
        counts=report.counts,
        duplicates=parts["duplicates"],
        mask_duplicates=parts.get("mask_duplicates"),
        owner=owner,
        code_version=__version__,
        created_at=datetime.now(timezone.utc).isoformat(timespec="microseconds"),
        timings=report.timings,
    )
    return commit_version(root, made, version)


def _metadata(report: DedupReport) -> dict[str, Any]:
    return {"fingerprint": report.dataset.fingerprint, "parameters": report.parameters, "code_version": __version__}


@contextmanager
def _timed(report: DedupReport, stage: str) -> Iterator[None]:
    begun = time.monotonic()
    yield
    report.timings[stage] = round(report.timings.get(stage, 0.0) + time.monotonic() - begun, 3)
