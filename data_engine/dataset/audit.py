"""Proof, from the files alone, that a dataset is what its plan promised.

Every image of the plan is exactly one row; every mask decodes with pycocotools to its stored area and box; every file
is the one that was committed, to the byte; no row is there twice.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

import pyarrow as pa
import pyarrow.compute as pc

from data_engine.dataset.commits import COMMITS_FOLDER, CommitRecord, Totals, read_commit
from data_engine.dataset.export.pool import in_order
from data_engine.dataset.manifest import MANIFEST_FILE
from data_engine.dataset.reader import MaskDataset
from data_engine.dataset.rejects import rejects_share
from data_engine.dataset.slice_audit import SliceCheck, check_slice
from data_engine.errors import DataEngineError
from data_engine.storage import join, list_names

_SHOWN = 20
_WORTH_PROCESSES = 1_000_000  # masks: of fewer, starting processes takes longer than looking at them


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
    workers: int = 1,
) -> AuditReport:
    """Checks everything, slice by slice in bounded memory (ids of all images are kept).

    planned and fingerprint come from the plan. A dataset that is not complete yet is audited as far as it goes, and
    what is missing is a finding. workers: processes, where there is enough to do; more of them need a main module that
    can be imported, as any spawned ones.
    """
    report = AuditReport(complete=dataset.complete, slices=len(dataset.commits))
    report.totals = Totals.sum(record.totals for record in dataset.commits)
    _check_shards(dataset, list(planned), report)
    ids: list[pa.ChunkedArray] = []
    for record, found in zip(dataset.commits, _slices(dataset, fingerprint, workers), strict=True):
        for finding in found.findings:
            report.add(finding)
        if found.ids is not None:
            ids.append(found.ids)
        on_slice(record)
    _check_duplicates(ids, report)
    _check_manifest(dataset, fingerprint, report)
    report.unreferenced = _unreferenced(dataset)
    return report


def _slices(dataset: MaskDataset, fingerprint: str, workers: int) -> Iterator[SliceCheck]:
    """What is found in each slice, in their order."""
    check = partial(_check, dataset.root, fingerprint, rejects_share(dataset))
    if dataset.totals.masks < _WORTH_PROCESSES:
        workers = 1
    return in_order(check, dataset.commits, workers, remedy="use fewer --workers")


def _check(root: str, fingerprint: str, share: float, record: CommitRecord, _: Callable[[], None]) -> SliceCheck:
    return check_slice(root, record, fingerprint, share)


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
