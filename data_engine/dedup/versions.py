"""Writing a version of duplicates beside a dataset: its tables first, the JSON that names them last, if absent."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data_engine.dataset.commits import Part
from data_engine.dataset.duplicates import DEDUP_FOLDER, DedupVersion, version_names, version_uri
from data_engine.dataset.schema import with_metadata
from data_engine.errors import DatasetError
from data_engine.pipeline.commit import delete, new_owner, put, put_if_absent
from data_engine.retry import retried
from data_engine.storage import filesystem, is_local, join, local_path, translated

_ROWS_PER_GROUP = 100_000
_BLOCK = 1 << 20


def write_local(path: Path, schema: pa.Schema, batches: Iterable[pa.RecordBatch], metadata: Mapping[str, Any]) -> int:
    """Batches -> a Parquet file on this machine, one at a time in memory. Returns its rows."""
    rows = 0
    options: dict[str, Any] = {"compression": "zstd", "write_page_checksum": True, "write_page_index": True}
    with pq.ParquetWriter(path, with_metadata(schema, metadata), **options) as writer:
        for batch in batches:
            table = pa.Table.from_batches([batch]).cast(schema)
            writer.write_table(table, row_group_size=_ROWS_PER_GROUP)
            rows += table.num_rows
    return rows


def put_table(root: str, local: Path, name: str, rows: int) -> Part:
    """A finished file, copied below the dataset under a name that nobody else uses."""
    part = Part(file=f"{DEDUP_FOLDER}/{name}.parquet", size=local.stat().st_size, sha256=_sha256(local), rows=rows)
    uri = join(root, part.file)
    if is_local(uri):
        _copy(local, uri)
    else:
        retried(lambda: _upload(local, uri))
    return part


def commit_version(root: str, version: DedupVersion, name: str | None) -> DedupVersion:
    """Makes `version` visible as `name`, or under the next free of v1, v2, … if that is None.

    Raises DatasetError when the name is taken; the tables go away then. After any other failure they stay, since the
    JSON that names them may have been written.
    """
    while True:
        named = replace(version, version=name or _next_name(root))
        if put_if_absent(version_uri(root, named.version), named.to_json()):
            return named
        if name is not None:
            _discard(root, [part for part in (version.duplicates, version.mask_duplicates) if part is not None])
            raise DatasetError(_taken(root, name))


def refuse_taken(root: str, name: str | None) -> None:
    """Before any work: raises DatasetError for a name that is taken, UsageError for one that is no name."""
    if name is not None:
        version_uri(root, name)
        if name in version_names(root):
            raise DatasetError(_taken(root, name))


def check_writable(root: str) -> None:
    """Before any work, which may take hours: raises StorageError where no version could be written."""
    probe = join(root, DEDUP_FOLDER, f"probe-{new_owner()}")
    try:
        put(probe, b"probe")
    finally:
        delete(probe)


@contextmanager
def discarded_on_failure(root: str) -> Iterator[list[Part]]:
    """Around the putting of tables that no version names yet: those that were put go away again."""
    parts: list[Part] = []
    try:
        yield parts
    except BaseException:
        _discard(root, parts)
        raise


def _discard(root: str, parts: Iterable[Part]) -> None:
    for part in parts:
        delete(join(root, part.file))


def _taken(root: str, name: str) -> str:
    return f"{root} has a version {name!r} of duplicates already: versions never change, choose another --version"


def _next_name(root: str) -> str:
    numbers = [int(name[1:]) for name in version_names(root) if name[:1] == "v" and name[1:].isdecimal()]
    return f"v{max(numbers, default=0) + 1}"


def _copy(local: Path, uri: str) -> None:
    target = local_path(uri)
    temporary = target.with_name(f".{target.name}.tmp")
    with translated(uri):
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            shutil.copyfile(local, temporary)
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)


def _upload(local: Path, uri: str) -> None:
    fs, path = filesystem(uri)
    with translated(uri):
        fs.put_file(str(local), path)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()
