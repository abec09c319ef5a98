"""The plan's shards as a Parquet file and back. Signed links stay out; that one is needed is kept."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from io import BytesIO
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data_engine.images.shard import FileEntry, Shard

_ENTRIES = 100_000  # of a row group: so many are dictionaries at a time, and Arrow's 2 GB of text are never reached
_FILE = pa.struct(
    [
        ("image_id", pa.string()),
        ("uri", pa.string()),
        ("size", pa.int64()),
        ("etag", pa.string()),
        ("signed", pa.bool_()),
    ]
)
_SHARDS = pa.schema(
    [
        ("id", pa.string()),
        ("kind", pa.string()),
        ("uri", pa.string()),
        ("prefix", pa.string()),
        ("size", pa.int64()),
        ("etag", pa.string()),
        ("images", pa.int64()),
        ("signed", pa.bool_()),
        ("take", pa.int64()),
        ("row_groups", pa.list_(pa.int64())),
        ("files", pa.list_(_FILE)),
    ]
)


def to_parquet(shards: Iterable[tuple[Shard, int | None]]) -> bytes:
    """(shard, how many of its images belong to the job or None for all) -> a Parquet file."""
    sink = BytesIO()
    with pq.ParquetWriter(sink, _SHARDS, compression="zstd", write_page_checksum=True) as writer:
        for some in _groups(shards):
            writer.write_table(pa.Table.from_pylist([_row(shard, take) for shard, take in some], _SHARDS))
    return sink.getvalue()


def from_parquet(data: bytes) -> Iterator[tuple[Shard, int | None]]:
    """What `to_parquet` was given. Raises TypeError, KeyError or ValueError (Arrow's) for another table."""
    table = pq.ParquetFile(BytesIO(data), page_checksum_verification=True)
    for row in (row for group in range(table.num_row_groups) for row in table.read_row_group(group).to_pylist()):
        take, groups, files = row.pop("take"), row.pop("row_groups"), row.pop("files")
        shard = Shard(
            **_link(row),
            row_groups=tuple(groups) if groups else None,
            files=tuple(_file(file) for file in files),
        )
        yield shard, take


def _groups(shards: Iterable[tuple[Shard, int | None]]) -> Iterator[list[tuple[Shard, int | None]]]:
    """Shards with `_ENTRIES` shards and files together, or a little more."""
    some: list[tuple[Shard, int | None]] = []
    entries = 0
    for planned in shards:
        some.append(planned)
        entries += 1 + len(planned[0].files)
        if entries >= _ENTRIES:
            yield some
            some, entries = [], 0
    if some:
        yield some


def _row(shard: Shard, take: int | None) -> dict[str, Any]:
    return {
        **{name: getattr(shard, name) for name in ("id", "kind", "uri", "prefix", "size", "etag", "images")},
        "signed": shard.link is not None,
        "take": take,
        "row_groups": shard.row_groups,
        "files": [_file_row(file) for file in shard.files],
    }


def _file_row(file: FileEntry) -> dict[str, Any]:
    return {
        "image_id": file.image_id,
        "uri": file.uri,
        "size": file.size,
        "etag": file.etag,
        "signed": file.link is not None,
    }


def _file(row: dict[str, Any]) -> FileEntry:
    if row["image_id"] == row["uri"]:  # of a manifest, as a rule: of millions one string each is enough
        row["image_id"] = row["uri"]
    return FileEntry(**_link(row))


def _link(row: dict[str, Any]) -> dict[str, Any]:
    signed = row.pop("signed", False)
    return {**row, "link": "" if signed else None}
