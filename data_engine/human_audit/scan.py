"""Reading a few columns of every committed slice, several slices at once, in order and in bounded memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data_engine.dataset.commits import CommitRecord, Part
from data_engine.dataset.committed_files import open_committed
from data_engine.dataset.reader import MaskDataset
from data_engine.errors import DatasetError
from data_engine.retry import retried
from data_engine.storage import join, translated

Item = TypeVar("Item")
Result = TypeVar("Result")

_THREADS = 8  # stores answer slowly, and Arrow decodes outside the interpreter's lock


def side_by_side(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """The results in the order of the items, computed in threads, few ahead of what is taken."""
    waiting: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(_THREADS) as pool:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > 2 * _THREADS:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def read_columns(dataset: MaskDataset, part: Part, columns: list[str]) -> pa.Table:
    """Some columns of a committed file. Waits out what passes. Raises DatasetError and StorageError."""

    def read() -> pa.Table:
        with translated(join(dataset.root, part.file)):
            return _open(dataset, part).read(columns=columns)

    return retried(read)


def read_rows(dataset: MaskDataset, part: Part, rows: np.ndarray, columns: list[str]) -> pa.Table:
    """Some rows of a committed file, reading only the row groups that hold them. rows: ascending."""

    def read() -> pa.Table:
        with translated(join(dataset.root, part.file)):
            file = _open(dataset, part)
            sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
            ends = np.cumsum(sizes)
            if len(rows) and (not len(ends) or rows[-1] >= ends[-1]):
                raise DatasetError(f"{join(dataset.root, part.file)} has fewer rows than its images say")
            groups = np.unique(np.searchsorted(ends, rows, side="right"))
            starts = np.cumsum([0, *(sizes[group] for group in groups)])[:-1]
            within = np.searchsorted(groups, np.searchsorted(ends, rows, side="right"))
            first = np.array([ends[group] - sizes[group] for group in groups])
            table = file.read_row_groups(groups.tolist(), columns=columns)
            return table.take(pa.array(rows - first[within] + starts[within]))

    return retried(read).replace_schema_metadata()


def mask_starts(dataset: MaskDataset, record: CommitRecord) -> tuple[list[str], np.ndarray]:
    """(ids of a slice's images, where the masks of each start in its file of masks, and where the last ones end)"""
    table = read_columns(dataset, record.images, ["image_id", "n_masks"])
    return table["image_id"].to_pylist(), np.concatenate([[0], np.cumsum(table["n_masks"].to_numpy())]).astype(np.int64)


def _open(dataset: MaskDataset, part: Part) -> pq.ParquetFile:
    return open_committed(dataset.root, part)
