"""Rows of a Parquet file by number: only the row groups that hold them are read."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq


class RowGroups:
    """For reading ranges of rows one after another, ascending: holds the row groups of the last one."""

    def __init__(self, file: pq.ParquetFile) -> None:
        self._file = file
        sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
        self._ends = np.cumsum(sizes, dtype=np.int64)
        self._held: dict[int, pa.Table] = {}

    def __len__(self) -> int:
        """Rows."""
        return self._file.metadata.num_rows

    def read(self, start: int, stop: int) -> pa.Table:
        """The rows `start` to `stop`, at least one; both within the file."""
        first, last = np.searchsorted(self._ends, [start, stop - 1], "right").tolist()
        groups = range(first, last + 1)
        self._held = {group: self._held[group] for group in groups if group in self._held}
        for group in groups:
            if group not in self._held:
                self._held[group] = self._file.read_row_group(group).replace_schema_metadata()
        before = int(self._ends[first - 1]) if first else 0
        return pa.concat_tables([self._held[group] for group in groups]).slice(start - before, stop - start)
