"""`_manifest.json`: the dataset is complete, and the table beside it is all of it.

The manifest is one small object, so that it can be written whole and only once, however many slices there are; the
records of the slices are rows of a Parquet file that it names with size and sha256.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data_engine.dataset.commits import CommitRecord, Part, Totals, parse_object
from data_engine.dataset.schema import SCHEMA_VERSION
from data_engine.errors import DatasetError
from data_engine.storage import join, read_bytes

MANIFEST_FILE = "_manifest.json"
MANIFEST_FOLDER = "_manifest"

_ROWS = 8192  # of a row group; so many records are dictionaries at a time
_PART = pa.struct([("file", pa.string()), ("size", pa.int64()), ("sha256", pa.string()), ("rows", pa.int64())])
_COUNTED = [name for name in Totals.__dataclass_fields__ if name != "errors"]
_TOTALS = pa.struct([*((name, pa.int64()) for name in _COUNTED), ("errors", pa.map_(pa.string(), pa.int64()))])
COMMITS = pa.schema(
    {
        "fingerprint": pa.string(),
        "shard": pa.string(),
        "slice": pa.int32(),
        "first_image": pa.int64(),
        "final": pa.bool_(),
        "images": _PART,
        "masks": _PART,
        "totals": _TOTALS,
        "owner": pa.string(),
        "attempt": pa.string(),
        "next_offset": pa.int64(),
        "damage": pa.string(),  # JSON
        "timings": pa.map_(pa.string(), pa.float64()),
        "code_version": pa.string(),
        "committed_at": pa.string(),
    }
)

_REJECTS = pa.field("rejects", _PART)  # a column of datasets that have such files


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What `_manifest.json` holds."""

    fingerprint: str  # of the plan
    totals: Totals
    commits: Part  # the table of the records
    owner: str
    created_at: str = ""  # UTC, ISO 8601

    def to_json(self) -> bytes:
        return (json.dumps({"schema_version": SCHEMA_VERSION, **asdict(self)}, indent=1) + "\n").encode()

    @classmethod
    def from_json(cls, data: bytes, where: str) -> Manifest:
        """Raises DatasetError for anything but a whole manifest."""
        fields = parse_object(data, where)
        try:
            totals, commits = Totals(**fields.pop("totals")), Part(**fields.pop("commits"))
            return cls(totals=totals, commits=commits, **fields)
        except (KeyError, TypeError) as error:
            raise DatasetError(f"{where} is not a manifest: {error}") from None


def make_manifest(
    fingerprint: str, records: Sequence[CommitRecord], owner: str, created_at: str = ""
) -> tuple[Manifest, bytes]:
    """The manifest of a complete dataset, and the table to write before it, under `manifest.commits.file`."""
    sink = io.BytesIO()
    schema = COMMITS.append(_REJECTS) if any(record.rejects for record in records) else COMMITS
    with pq.ParquetWriter(sink, schema, compression="zstd", write_page_checksum=True) as writer:
        for start in range(0, len(records), _ROWS):
            rows = [_row(record) for record in records[start : start + _ROWS]]
            writer.write_table(pa.Table.from_pylist(rows, schema))
    table = sink.getvalue()
    part = Part(
        file=f"{MANIFEST_FOLDER}/commits-{owner}.parquet",
        size=len(table),
        sha256=hashlib.sha256(table).hexdigest(),
        rows=len(records),
    )
    totals = Totals.sum(record.totals for record in records)
    return Manifest(fingerprint=fingerprint, totals=totals, commits=part, owner=owner, created_at=created_at), table


def read_manifest(root: str) -> Manifest | None:
    """The manifest, or None while the dataset is incomplete."""
    uri = join(root, MANIFEST_FILE)
    try:
        return Manifest.from_json(read_bytes(uri), uri)
    except FileNotFoundError:
        return None


def read_manifest_commits(root: str, manifest: Manifest) -> list[CommitRecord]:
    """The records of a complete dataset. Raises DatasetError if the table is not the one that the manifest names."""
    uri = join(root, manifest.commits.file)
    try:
        data = read_bytes(uri)
    except FileNotFoundError:
        raise DatasetError(f"{uri} is gone, {MANIFEST_FILE} names it; `_commits/` still has every record") from None
    if len(data) != manifest.commits.size or hashlib.sha256(data).hexdigest() != manifest.commits.sha256:
        raise DatasetError(
            f"{uri} is not the table that {MANIFEST_FILE} names ({len(data)} bytes, {manifest.commits.size} expected; "
            "sha256 differs); `_commits/` still has every record: remove both, and the generate command writes them new"
        )
    batches = pq.ParquetFile(io.BytesIO(data)).iter_batches(_ROWS)
    return [_record(row, uri) for batch in batches for row in batch.to_pylist()]


def _row(record: CommitRecord) -> dict[str, Any]:
    damage = None if record.damage is None else json.dumps(record.damage)
    return {**asdict(record), "damage": damage}


def _record(row: dict[str, Any], where: str) -> CommitRecord:
    row["totals"]["errors"] = dict(row["totals"]["errors"])
    row["timings"] = dict(row["timings"])
    row["damage"] = None if row["damage"] is None else json.loads(row["damage"])
    return CommitRecord.from_fields(row, where)
