"""What a run computed, kept beside a dataset, so that another run goes on from there.

`_dedup/<prefix>-<owner>-<number>.parquet`: each file is there as a whole or not at all, under a name that no other
process uses, and never changes. The files of a prefix and an origin together are what is known.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data_engine import __version__
from data_engine.dataset.duplicates import DEDUP_FOLDER
from data_engine.dataset.schema import read_metadata
from data_engine.dedup.versions import put_table, write_local
from data_engine.errors import DatasetError
from data_engine.pipeline.commit import new_owner
from data_engine.storage import join, list_names, read_bytes


class KeptFiles:
    """The files of one prefix beside the dataset at `root`."""

    def __init__(self, root: str, prefix: str, origin: Mapping[str, Any], what: str) -> None:
        """origin: what decides the rows; files of another one do not count. what: the rows, for messages."""
        self._root, self._prefix, self._origin, self._what = root, prefix, dict(origin), what
        self._owner = new_owner()
        self._written = 0

    def names(self) -> list[str]:
        """Of all files of the prefix, those of another origin included."""
        names = list_names(join(self._root, DEDUP_FOLDER))
        return [name for name in names if name.startswith(f"{self._prefix}-") and name.endswith(".parquet")]

    def read(self, name: str) -> tuple[dict[str, Any], pa.Table] | None:
        """Metadata and rows; None where the origin is another. Raises DatasetError for a damaged file."""
        uri = join(self._root, DEDUP_FOLDER, name)
        try:
            file = pq.ParquetFile(pa.BufferReader(read_bytes(uri)), page_checksum_verification=True)
            metadata = read_metadata(file.schema_arrow, uri)
            if any(metadata.get(key) != value for key, value in self._origin.items()):
                return None
            return metadata, file.read()
        except (pa.ArrowInvalid, OSError, KeyError, ValueError) as error:
            raise DatasetError(f"{uri} is damaged ({error}): delete it, and {self._what} are made anew") from None

    def put(self, table: pa.Table, folder: Path, **facts: Any) -> None:
        """Adds a file. facts: more metadata. folder: for the file on its way, on this machine."""
        local = folder / f"{self._prefix}.parquet"
        metadata = {**self._origin, **facts, "code_version": __version__}
        rows = write_local(local, table.schema, table.to_batches(), metadata)
        put_table(self._root, local, f"{self._prefix}-{self._owner}-{self._written:04d}", rows)
        local.unlink()
        self._written += 1
