"""A dataset made of another one, slice by slice, committed like every other dataset."""

from __future__ import annotations

import random
import time
import uuid
from collections.abc import Callable
from dataclasses import replace

from data_engine import __version__
from data_engine.dataset.commits import CommitRecord, Part, Totals, commit_file, read_commit, read_commits
from data_engine.dataset.manifest import MANIFEST_FILE, make_manifest, read_manifest
from data_engine.dataset.reader import MaskDataset
from data_engine.dataset.writer import FinishedFile, SliceWriter
from data_engine.errors import UsageError
from data_engine.images.shard import FileEntry
from data_engine.pipeline.commit import check_store, delete, new_owner, put, put_if_absent
from data_engine.pipeline.plan import JobPlan, PlannedShard, input_name, now, read_plan, write_plan
from data_engine.storage import join

Fill = Callable[[CommitRecord, SliceWriter], Totals]
"""Writes the rows that a slice of the other dataset becomes."""


def write_derived(
    dataset: MaskDataset,
    plan: JobPlan,
    destination: str,
    fill: Fill,
    on_slice: Callable[[CommitRecord], None],
    *,
    stage: str,
) -> Totals:
    """Writes the dataset of `plan`. Goes on where an earlier call stopped; several at once share the work.

    plan: with `replayed_from`, and the shards of `dataset` or some of them. stage: the work's name in the timings.
    Raises PlanMismatch where the destination is another job's.
    """
    if input_name(destination) == input_name(dataset.root):
        raise UsageError(f"{destination} is the dataset itself: choose another place for the {stage}")
    settled = _settle_plan(destination, plan)
    writer = _Writer(fill, destination, settled, stage)
    done = {record.file: record for record in read_commits(destination)}
    records: list[CommitRecord] = []
    for shard in _shards(dataset, settled):
        first = 0
        for source in shard:
            file = commit_file(source.shard, source.slice)
            record = done.get(file) or writer.standing(file) or writer.commit(source, first)
            first += record.totals.images
            records.append(record)
            on_slice(record)
    _write_manifest(destination, settled, sorted(records, key=lambda record: (record.shard, record.slice)))
    return Totals.sum(record.totals for record in records)


def kept_shards(dataset: MaskDataset, plan: JobPlan, keeps: Callable[[str], bool]) -> tuple[PlannedShard, ...]:
    """The shards as far as `keeps` says of their images' ids: of listed files those, of others how many images."""
    counts: dict[str, int] = {}
    for record in dataset.commits:
        kept = sum(map(keeps, dataset.image_ids(record)))
        counts[record.shard] = counts.get(record.shard, 0) + kept
    return tuple(_only_kept(planned, counts[planned.id], keeps) for planned in plan.shards if counts.get(planned.id))


def _only_kept(planned: PlannedShard, count: int, keeps: Callable[[str], bool]) -> PlannedShard:
    shard = planned.shard
    if not shard.files:
        return PlannedShard(shard, take=count)
    files = tuple(file for file in shard.files[: planned.take] if keeps(file.image_id))
    return PlannedShard(replace(shard, files=files, images=len(files), size=_bytes(files)))


def _bytes(files: tuple[FileEntry, ...]) -> int | None:
    sizes = [file.size for file in files]
    return None if None in sizes else sum(size for size in sizes if size is not None)


def _shards(dataset: MaskDataset, plan: JobPlan) -> list[list[CommitRecord]]:
    """The slices of each shard, in order; the shards in any order, so that several processes part."""
    slices: dict[str, list[CommitRecord]] = {planned.id: [] for planned in plan.shards}
    for record in sorted(dataset.commits, key=lambda record: record.slice):
        if record.shard in slices:
            slices[record.shard].append(record)
    return random.sample(list(slices.values()), len(slices))


def _settle_plan(destination: str, plan: JobPlan) -> JobPlan:
    stands = read_plan(destination)
    if stands is None:
        check_store(destination)
        return write_plan(destination, plan)
    stands.refuse_unless_same(plan, destination)
    return stands


class _Writer:
    """Makes the slices of one such dataset."""

    def __init__(self, fill: Fill, destination: str, plan: JobPlan, stage: str) -> None:
        self._fill = fill
        self._root = destination
        self._stage = stage
        self._shards = {planned.id: planned.shard for planned in plan.shards}
        self._metadata = {**plan.metadata(), "replayed_from": plan.replayed_from}
        self._owner = new_owner()

    def standing(self, file: str) -> CommitRecord | None:
        """The record that another process has committed in the meantime."""
        try:
            return read_commit(join(self._root, file))
        except FileNotFoundError:
            return None

    def commit(self, source: CommitRecord, first_image: int) -> CommitRecord:
        """The record of a slice that stands: ours, or that of whoever was faster."""
        begun = time.perf_counter()
        shard = self._shards[source.shard]
        origin = {"shard": shard.id, "uri": shard.uri, "etag": shard.etag, "slice": source.slice}
        writer = SliceWriter({**self._metadata, "source": origin})
        totals = self._fill(source, writer)
        images, masks = writer.finish()
        attempt = uuid.uuid4().hex[:8]
        name = f"{source.shard}-{source.slice:05d}-{attempt}.parquet"
        record = CommitRecord(
            fingerprint=self._metadata["fingerprint"],
            shard=source.shard,
            slice=source.slice,
            first_image=first_image,
            final=source.final,
            images=self._put("images", name, images),
            masks=self._put("masks", name, masks),
            totals=totals,
            owner=self._owner,
            attempt=attempt,
            next_offset=source.next_offset,
            damage=source.damage,
            timings={self._stage: round(time.perf_counter() - begun, 4)},
            code_version=__version__,
            committed_at=now(),
        )
        if put_if_absent(join(self._root, record.file), record.to_json()):
            return record
        for part in record.parts:
            delete(join(self._root, part.file))
        return read_commit(join(self._root, record.file))

    def _put(self, folder: str, name: str, file: FinishedFile) -> Part:
        part = Part(file=f"{folder}/{name}", size=len(file.data), sha256=file.sha256, rows=file.rows)
        put(join(self._root, part.file), file.data)
        return part


def _write_manifest(root: str, plan: JobPlan, records: list[CommitRecord]) -> None:
    if read_manifest(root) is not None:
        return
    manifest, table = make_manifest(plan.fingerprint, records, new_owner(), now())
    uri = join(root, manifest.commits.file)
    put(uri, table)
    if not put_if_absent(join(root, MANIFEST_FILE), manifest.to_json()):
        delete(uri)  # another process was first; its table says the same
