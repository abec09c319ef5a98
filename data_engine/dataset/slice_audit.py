"""One committed slice, checked from its files alone: they are the committed ones, and their rows agree."""

from __future__ import annotations

import hashlib
import io
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data_engine.dataset.commits import CommitRecord, Part, Totals
from data_engine.dataset.rejects import reject_problems
from data_engine.dataset.run_lengths import run_length_problems
from data_engine.dataset.schema import IMAGES, MASKS, REJECTS, read_metadata
from data_engine.errors import DataEngineError
from data_engine.storage import join, read_bytes

_SHOWN = 20


@dataclass(frozen=True, slots=True)
class SliceCheck:
    """What was found, and the ids of its images: None where they cannot be read."""

    findings: list[str] = field(default_factory=list)
    ids: pa.ChunkedArray | None = None


def check_slice(root: str, record: CommitRecord, fingerprint: str, share: float) -> SliceCheck:
    """fingerprint: of the plan. share: of the images that keep their rejects."""
    findings: list[str] = []
    if record.fingerprint != fingerprint:
        findings.append(f"{record.file}: belongs to another plan (fingerprint {record.fingerprint[:12]})")
    images = _read(root, record.images, IMAGES, fingerprint, findings)
    masks = _read(root, record.masks, MASKS, fingerprint, findings)
    if images is not None:
        _check_images(record, images, findings)
        if masks is not None:
            _check_pairing(record, images, masks, findings)
    if masks is not None:
        _check_runs(record.masks.file, masks, findings)
    if images is not None and (record.rejects is not None or share > 0):
        _check_rejects(root, record, images, share, fingerprint, findings)
    return SliceCheck(findings, images["image_id"] if images is not None else None)


def _read(root: str, part: Part, schema: pa.Schema, fingerprint: str, findings: list[str]) -> pa.Table | None:
    """A data file, if it is exactly the committed one."""
    uri = join(root, part.file)
    try:
        data = read_bytes(uri)
    except (DataEngineError, FileNotFoundError) as error:
        findings.append(f"{part.file}: cannot be read ({error or 'it is gone'})")
        return None
    if len(data) != part.size or hashlib.sha256(data).hexdigest() != part.sha256:
        sizes = f"{len(data)} bytes, {part.size} committed"
        findings.append(f"{part.file}: is not the committed file ({sizes}; sha256 differs)")
        return None
    try:
        file = pq.ParquetFile(io.BytesIO(data), page_checksum_verification=True)
        metadata = read_metadata(file.schema_arrow, part.file)
        table = file.read()
    except (DataEngineError, OSError, pa.ArrowInvalid) as error:
        findings.append(f"{part.file}: {error}")
        return None
    if metadata.get("fingerprint") != fingerprint:
        findings.append(f"{part.file}: belongs to another plan")
    if not table.schema.equals(schema):
        findings.append(f"{part.file}: its columns are not those of schema {metadata['schema_version']}")
        return None
    if table.num_rows != part.rows:
        findings.append(f"{part.file}: {table.num_rows} rows, {part.rows} committed")
    return table


def _check_images(record: CommitRecord, images: pa.Table, findings: list[str]) -> None:
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
        findings.append(f"{where}: its rows add up to {found}, the commit says {record.totals}")
    if set(images["shard"].unique().to_pylist()) - {record.shard}:
        findings.append(f"{where}: has rows of another shard")
    accounted = images["n_masks"]
    for reason in ("iou", "stability", "edge", "nms", "area"):
        accounted = pc.add(accounted, images[f"n_rejected_{reason}"])
    for row in _where(pc.not_equal(accounted, images["n_candidates"])):
        findings.append(f"{where} row {row}: candidates are not the sum of masks and rejected")
    good = pc.invert(failed)
    for name in ("sha256", "phash", "width", "height"):
        for row in _where(pc.and_(good, images[name].is_null())):
            findings.append(f"{where} row {row}: status ok, but no {name}")
    for row in _where(pc.xor(failed, images["error_type"].is_valid())):
        findings.append(f"{where} row {row}: status and error type contradict each other")


def _check_pairing(record: CommitRecord, images: pa.Table, masks: pa.Table, findings: list[str]) -> None:
    """The masks file holds the masks of each image, contiguous, in the order of the images, numbered from 0."""
    counts = images["n_masks"].to_numpy()
    expected_id = images["image_id"].combine_chunks().take(pa.array(np.repeat(np.arange(len(counts)), counts)))
    starts = np.repeat(np.cumsum(counts) - counts, counts)
    expected_number = np.arange(len(starts)) - starts
    if len(expected_id) != masks.num_rows:
        findings.append(f"{record.masks.file}: {masks.num_rows} masks, the images say {len(expected_id)}")
        return
    for row in _where(pc.not_equal(masks["image_id"].combine_chunks(), expected_id))[:_SHOWN]:
        findings.append(f"{record.masks.file} row {row}: is not of the image that should be here")
    for row in np.flatnonzero(masks["mask_id"].to_numpy() != expected_number)[:_SHOWN]:
        findings.append(f"{record.masks.file} row {row}: mask_id out of order")
    for name in ("height", "width"):
        size = images[name].to_numpy(zero_copy_only=False).repeat(counts)
        for row in np.flatnonzero(masks[name].to_numpy() != size)[:_SHOWN]:
            findings.append(f"{record.masks.file} row {row}: {name} is not the image's")


def _check_rejects(
    root: str, record: CommitRecord, images: pa.Table, share: float, fingerprint: str, findings: list[str]
) -> None:
    """The rejects of the images that keep them are all there, and add up with what the images say."""
    part = record.rejects
    rejects = REJECTS.empty_table() if part is None else _read(root, part, REJECTS, fingerprint, findings)
    if rejects is None:
        return
    where = part.file if part else record.file
    for problem in reject_problems(images, rejects, share)[:_SHOWN]:
        findings.append(f"{where}: {problem}")
    _check_runs(where, rejects.filter(rejects["counts"].is_valid()), findings)


def _check_runs(where: str, masks: pa.Table, findings: list[str]) -> None:
    for problem in run_length_problems(masks, _SHOWN):
        findings.append(f"{where} {problem}")


def _sum(column: pa.ChunkedArray) -> int:
    return pc.sum(column).as_py() or 0


def _where(condition: pa.ChunkedArray) -> list[int]:
    return pc.indices_nonzero(pc.fill_null(condition, True)).to_pylist()[:_SHOWN]
