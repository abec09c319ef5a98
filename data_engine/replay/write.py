"""A replay as a dataset of its own, slice by slice, committed like every other dataset."""

from __future__ import annotations

import random
import time
import uuid
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from data_engine import __version__
from data_engine.config import JobConfig
from data_engine.dataset.commits import CommitRecord, Part, Totals, commit_file, read_commit, read_commits
from data_engine.dataset.manifest import MANIFEST_FILE, make_manifest, read_manifest
from data_engine.dataset.reader import MaskDataset
from data_engine.dataset.writer import FinishedFile, SliceWriter
from data_engine.errors import UsageError
from data_engine.masks.settings import MaskSettings
from data_engine.pipeline.commit import check_store, delete, new_owner, put, put_if_absent
from data_engine.pipeline.plan import JobPlan, input_name, now, read_plan, write_plan
from data_engine.pipeline.rows import mask_columns
from data_engine.replay.plan import replay_plan
from data_engine.replay.select import Replayed, replay
from data_engine.replay.stored import stored_images
from data_engine.storage import join


def write_replay(
    dataset: MaskDataset,
    plan: JobPlan,
    config: JobConfig,
    settings: MaskSettings,
    destination: str,
    on_slice: Callable[[CommitRecord], None] = lambda record: None,
) -> Totals:
    """Writes the dataset that a run with `settings` would have made of the images that kept their rejects.

    plan and config: of the run. Goes on where an earlier call stopped; several at once share the work. Raises
    DatasetError for a dataset that is not complete, PlanMismatch where the destination is another job's.
    """
    if input_name(destination) == input_name(dataset.root):
        raise UsageError(f"{destination} is the dataset itself: choose another place for the replay")
    replayed = _settle_plan(destination, replay_plan(dataset, plan, config, settings))
    writer = _Writer(dataset, config, settings, destination, replayed)
    done = {record.file: record for record in read_commits(destination)}
    records: list[CommitRecord] = []
    for shard in _shards(dataset, replayed):
        first = 0
        for source in shard:
            file = commit_file(source.shard, source.slice)
            record = done.get(file) or writer.standing(file) or writer.commit(source, first)
            first += record.totals.images
            records.append(record)
            on_slice(record)
    _write_manifest(destination, replayed, sorted(records, key=lambda record: (record.shard, record.slice)))
    return Totals.sum(record.totals for record in records)


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
    """Makes the slices of one replay."""

    def __init__(
        self, dataset: MaskDataset, config: JobConfig, settings: MaskSettings, destination: str, plan: JobPlan
    ) -> None:
        self._dataset = dataset
        self._config = config
        self._settings = settings
        self._root = destination
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
        (images, masks), totals = self._slice(source)
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
            timings={"replay": round(time.perf_counter() - begun, 4)},
            code_version=__version__,
            committed_at=now(),
        )
        if put_if_absent(join(self._root, record.file), record.to_json()):
            return record
        for part in record.parts:
            delete(join(self._root, part.file))
        return read_commit(join(self._root, record.file))

    def _slice(self, source: CommitRecord) -> tuple[tuple[FinishedFile, FinishedFile], Totals]:
        shard = self._shards[source.shard]
        origin = {"shard": shard.id, "uri": shard.uri, "etag": shard.etag, "slice": source.slice}
        writer = SliceWriter({**self._metadata, "source": origin})
        totals = Totals()
        for image in stored_images(self._dataset, source, self._config.masks, self._config.output.keep_rejects):
            if image.row["status"] != "ok":
                writer.add(image.row)
                totals = totals + Totals(images=1, failed=1, errors={image.row["error_type"]: 1})
                continue
            found = replay(image, self._settings)
            writer.add(_image_row(image.row, found), mask_columns(found.masks))
            totals = totals + Totals(images=1, masks=len(found.masks), **asdict(found.masks.filtered))
        return writer.finish(), totals

    def _put(self, folder: str, name: str, file: FinishedFile) -> Part:
        part = Part(file=f"{folder}/{name}", size=len(file.data), sha256=file.sha256, rows=file.rows)
        put(join(self._root, part.file), file.data)
        return part


def _image_row(row: dict[str, Any], replayed: Replayed) -> dict[str, Any]:
    counts = {f"n_{name}": count for name, count in replayed.masks.filtered.as_dict().items()}
    return {**row, "n_masks": len(replayed.masks), **counts}


def _write_manifest(root: str, plan: JobPlan, records: list[CommitRecord]) -> None:
    if read_manifest(root) is not None:
        return
    manifest, table = make_manifest(plan.fingerprint, records, new_owner(), now())
    uri = join(root, manifest.commits.file)
    put(uri, table)
    if not put_if_absent(join(root, MANIFEST_FILE), manifest.to_json()):
        delete(uri)  # another process was first; its table says the same
