"""Proof, from the files alone, that a dataset is what its plan promised.

Every image of the plan is exactly one row; every mask decodes with pycocotools to its stored area and box; every file
is the one that was committed, to the byte; no row is there twice.
"""

from __future__ import annotations

import hashlib
import io
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data_engine.dataset.commits import COMMITS_FOLDER, CommitRecord, Part, Totals, read_commit
from data_engine.dataset.manifest import MANIFEST_FILE
from data_engine.dataset.reader import MaskDataset
from data_engine.dataset.rejects import reject_problems, rejects_share
from data_engine.dataset.run_lengths import run_length_problems
from data_engine.dataset.schema import IMAGES, MASKS, REJECTS, read_metadata
from data_engine.errors import DataEngineError
from data_engine.storage import join, list_names, read_bytes

_SHOWN = 20


@dataclass(frozen=True, slots=True)
class PlannedCount:
    """What the plan says of a shard."""

    shard: str
    images: int | None  # None where it is not known before reading


@dataclass(slots=True)
class AuditReport:
    """What was checked, and every finding. `ok` only if there is none."""

    totals: Totals = field(default_factory=Totals)
    slices: int = 0
    shards: int = 0
    complete: bool = False
    damaged_shards: int = 0
    unreferenced: int = 0  # files of lost races or crashes: harmless
    findings: list[str] = field(default_factory=list)
    more_findings: int = 0

    @property
    def ok(self) -> bool:
        return not self.findings

    def add(self, finding: str) -> None:
        if len(self.findings) < 1000:
            self.findings.append(finding)
        else:
            self.more_findings += 1


def audit(
    dataset: MaskDataset,
    planned: Iterable[PlannedCount],
    fingerprint: str,
    on_slice: Callable[[CommitRecord], None] = lambda record: None,
) -> AuditReport:
    """Checks everything, slice by slice in bounded memory (ids of all images are kept).

    planned and fingerprint come from the plan. A dataset that is not complete yet is audited as far as it goes, and
    what is missing is a finding.
    """
    report = AuditReport(complete=dataset.complete, slices=len(dataset.commits))
    report.totals = Totals.sum(record.totals for record in dataset.commits)
    _check_shards(dataset, list(planned), report)
    ids: list[pa.ChunkedArray] = []
    keeps_any = rejects_share(dataset) > 0
    for record in dataset.commits:
        if record.fingerprint != fingerprint:
            report.add(f"{record.file}: belongs to another plan (fingerprint {record.fingerprint[:12]})")
        images = _read(dataset, record.images, IMAGES, fingerprint, report)
        masks = _read(dataset, record.masks, MASKS, fingerprint, report)
        if images is not None:
            ids.append(images["image_id"])
            _check_images(record, images, report)
            if masks is not None:
                _check_pairing(record, images, masks, report)
        if masks is not None:
            _check_runs(record.masks.file, masks, report)
        if images is not None and (record.rejects is not None or keeps_any):
            _check_rejects(dataset, record, images, fingerprint, report)
        on_slice(record)
    _check_duplicates(ids, report)
    _check_manifest(dataset, fingerprint, report)
    report.unreferenced = _unreferenced(dataset)
    return report


def _check_shards(dataset: MaskDataset, planned: list[PlannedCount], report: AuditReport) -> None:
    """Each planned shard has slices 0, 1, ... without gaps, the last one final, with as many images as planned."""
    by_shard: dict[str, list[CommitRecord]] = defaultdict(list)
    for record in dataset.commits:
        by_shard[record.shard].append(record)
    report.shards = len(planned)
    for plan in planned:
        records = sorted(by_shard.pop(plan.shard, []), key=lambda record: record.slice)
        if not records:
            report.add(f"shard {plan.shard}: nothing is committed")
            continue
        if [record.slice for record in records] != list(range(len(records))):
            report.add(f"shard {plan.shard}: slices are missing, there are {[record.slice for record in records]}")
        if [record.final for record in records] != [False] * (len(records) - 1) + [True]:
            report.add(f"shard {plan.shard}: is not finished")
        images = 0
        for record in records:
            if record.first_image != images:
                report.add(f"{record.file}: starts at image {record.first_image}, expected {images}")
            images += record.totals.images
        damaged = any(record.damage for record in records)
        report.damaged_shards += damaged
        if plan.images is not None and images != plan.images and records[-1].final and not damaged:
            report.add(f"shard {plan.shard}: {plan.images} images in, {images} rows out")
    for shard in by_shard:
        report.add(f"shard {shard}: is committed but not in the plan")


def _read(
    dataset: MaskDataset, part: Part, schema: pa.Schema, fingerprint: str, report: AuditReport
) -> pa.Table | None:
    """A data file, if it is exactly the committed one."""
    uri = join(dataset.root, part.file)
    try:
        data = read_bytes(uri)
    except (DataEngineError, FileNotFoundError) as error:
        report.add(f"{part.file}: cannot be read ({error or 'it is gone'})")
        return None
    if len(data) != part.size or hashlib.sha256(data).hexdigest() != part.sha256:
        report.add(f"{part.file}: is not the committed file ({len(data)} bytes, {part.size} committed; sha256 differs)")
        return None
    try:
        file = pq.ParquetFile(io.BytesIO(data), page_checksum_verification=True)
        metadata = read_metadata(file.schema_arrow, part.file)
        table = file.read()
    except (DataEngineError, OSError, pa.ArrowInvalid) as error:
        report.add(f"{part.file}: {error}")
        return None
    if metadata.get("fingerprint") != fingerprint:
        report.add(f"{part.file}: belongs to another plan")
    if not table.schema.equals(schema):
        report.add(f"{part.file}: its columns are not those of schema {metadata['schema_version']}")
        return None
    if table.num_rows != part.rows:
        report.add(f"{part.file}: {table.num_rows} rows, {part.rows} committed")
    return table


def _check_images(record: CommitRecord, images: pa.Table, report: AuditReport) -> None:
    where = record.images.file
    failed = pc.equal(images["status"].cast(pa.string()), "failed")
    found = Totals(
        images=images.num_rows,
        failed=_sum(failed),
        masks=_sum(images["n_masks"]),
        candidates=_sum(images["n_candidates"]),
        rejected_iou=_sum(images["n_rejected_iou"]),
        rejected_stability=_sum(images["n_rejected_stability"]),
        rejected_edge=_sum(images["n_rejected_edge"]),
        rejected_nms=_sum(images["n_rejected_nms"]),
        rejected_area=_sum(images["n_rejected_area"]),
        errors=dict(sorted(Counter(images["error_type"].drop_null().to_pylist()).items())),
    )
    if found != record.totals:
        report.add(f"{where}: its rows add up to {found}, the commit says {record.totals}")
    if set(images["shard"].unique().to_pylist()) - {record.shard}:
        report.add(f"{where}: has rows of another shard")
    accounted = images["n_masks"]
    for reason in ("iou", "stability", "edge", "nms", "area"):
        accounted = pc.add(accounted, images[f"n_rejected_{reason}"])
    for row in _where(pc.not_equal(accounted, images["n_candidates"])):
        report.add(f"{where} row {row}: candidates are not the sum of masks and rejected")
    good = pc.invert(failed)
    for name in ("sha256", "phash", "width", "height"):
        for row in _where(pc.and_(good, images[name].is_null())):
            report.add(f"{where} row {row}: status ok, but no {name}")
    for row in _where(pc.xor(failed, images["error_type"].is_valid())):
        report.add(f"{where} row {row}: status and error type contradict each other")


def _check_pairing(record: CommitRecord, images: pa.Table, masks: pa.Table, report: AuditReport) -> None:
    """The masks file holds the masks of each image, contiguous, in the order of the images, numbered from 0."""
    counts = images["n_masks"].to_numpy()
    expected_id = images["image_id"].combine_chunks().take(pa.array(np.repeat(np.arange(len(counts)), counts)))
    starts = np.repeat(np.cumsum(counts) - counts, counts)
    expected_number = np.arange(len(starts)) - starts
    if len(expected_id) != masks.num_rows:
        report.add(f"{record.masks.file}: {masks.num_rows} masks, the images say {len(expected_id)}")
        return
    for row in _where(pc.not_equal(masks["image_id"].combine_chunks(), expected_id))[:_SHOWN]:
        report.add(f"{record.masks.file} row {row}: is not of the image that should be here")
    for row in np.flatnonzero(masks["mask_id"].to_numpy() != expected_number)[:_SHOWN]:
        report.add(f"{record.masks.file} row {row}: mask_id out of order")
    for name in ("height", "width"):
        size = images[name].to_numpy(zero_copy_only=False).repeat(counts)
        for row in np.flatnonzero(masks[name].to_numpy() != size)[:_SHOWN]:
            report.add(f"{record.masks.file} row {row}: {name} is not the image's")


def _check_rejects(
    dataset: MaskDataset, record: CommitRecord, images: pa.Table, fingerprint: str, report: AuditReport
) -> None:
    """The rejects of the images that keep them are all there, and add up with what the images say."""
    part = record.rejects
    rejects = REJECTS.empty_table() if part is None else _read(dataset, part, REJECTS, fingerprint, report)
    if rejects is None:
        return
    share, where = rejects_share(dataset), part.file if part else record.file
    for problem in reject_problems(images, rejects, share)[:_SHOWN]:
        report.add(f"{where}: {problem}")
    _check_runs(where, rejects.filter(rejects["counts"].is_valid()), report)


def _check_runs(where: str, masks: pa.Table, report: AuditReport) -> None:
    for problem in run_length_problems(masks, _SHOWN):
        report.add(f"{where} {problem}")


def _check_duplicates(ids: list[pa.ChunkedArray], report: AuditReport) -> None:
    if not ids:
        return
    chunks = [chunk.cast(pa.large_string()) for column in ids for chunk in column.chunks]
    counts = pa.chunked_array(chunks, pa.large_string()).value_counts()  # of strings it takes 2 GB at most
    twice = counts.filter(pc.greater(counts.field("counts"), 1))
    for entry in twice.to_pylist()[:_SHOWN]:
        report.add(f"image {entry['values']!r}: {entry['counts']} rows")


def _check_manifest(dataset: MaskDataset, fingerprint: str, report: AuditReport) -> None:
    """The manifest is of this plan, adds up, and holds the very records that were committed one by one."""
    manifest = dataset.manifest
    if manifest is None:
        return
    if manifest.fingerprint != fingerprint:
        report.add(f"{MANIFEST_FILE}: belongs to another plan (fingerprint {manifest.fingerprint[:12]})")
    if manifest.totals != report.totals:
        report.add(f"{MANIFEST_FILE}: its totals are not the sum of its commits")
    listed = {record.file: record for record in dataset.commits}
    if len(listed) < len(dataset.commits):
        report.add(f"{MANIFEST_FILE}: holds {len(dataset.commits) - len(listed)} records twice")
    names = [name for name in list_names(join(dataset.root, COMMITS_FOLDER)) if name.endswith(".json")]
    present = {f"{COMMITS_FOLDER}/{name}" for name in names}
    for file in sorted(listed.keys() - present):
        report.add(f"{file}: is gone, {MANIFEST_FILE} has it")
    for file in sorted(present - listed.keys()):
        report.add(f"{file}: is not in {MANIFEST_FILE}")
    for file, problem in _differing(dataset.root, listed, sorted(present & listed.keys())):
        report.add(f"{file}: {problem}")


def _differing(root: str, listed: dict[str, CommitRecord], files: list[str]) -> Iterator[tuple[str, str]]:
    """(record, problem) of the records that are not what the manifest says they are."""

    def problem(file: str) -> str | None:
        try:
            same = read_commit(join(root, file)) == listed[file]
        except (DataEngineError, FileNotFoundError) as error:
            return f"cannot be read ({error or 'it is gone'})"
        return None if same else f"is not the record that {MANIFEST_FILE} has"

    with ThreadPoolExecutor(16) as pool:
        for file, found in zip(files, pool.map(problem, files), strict=True):
            if found is not None:
                yield file, found


def _unreferenced(dataset: MaskDataset) -> int:
    committed = {part.file for record in dataset.commits for part in record.parts}
    folders = ("images", "masks", "rejects")
    present = {f"{folder}/{name}" for folder in folders for name in list_names(join(dataset.root, folder))}
    return len(present - committed)


def _sum(column: pa.ChunkedArray) -> int:
    return pc.sum(column).as_py() or 0


def _where(condition: pa.ChunkedArray) -> list[int]:
    return pc.indices_nonzero(pc.fill_null(condition, True)).to_pylist()[:_SHOWN]
