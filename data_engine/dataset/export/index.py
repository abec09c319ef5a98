"""`index.parquet`: from the names of an export back to the images of the dataset."""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data_engine.dataset.export.destination import in_the_making, put_bytes, put_stream
from data_engine.dataset.export.format import STATE_FOLDER, Finished, PieceTarget
from data_engine.storage import join, read_bytes

INDEX_FILE = "index.parquet"

_READERS = 16
_READ_AHEAD = 64  # pieces in memory


def to_parquet(rows: list[dict[str, Any]], schema: pa.Schema) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), buffer, compression="zstd")
    return buffer.getvalue()


def put_piece_of_index(target: PieceTarget, rows: list[dict[str, Any]], schema: pa.Schema) -> None:
    """The rows of one piece, kept aside until all are there."""
    target.put_aside(_name(target.index), to_parquet(rows, schema))


def put_index(export: Finished, schema: pa.Schema) -> None:
    """One table of all pieces, streamed."""
    if len(export.reports) == 1:
        put_bytes(join(export.destination, INDEX_FILE), read_bytes(join(export.destination, STATE_FOLDER, _name(0))))
        return

    def read(index: int) -> bytes:
        return read_bytes(join(export.destination, STATE_FOLDER, _name(index)))

    with in_the_making("an index") as file:
        with pq.ParquetWriter(file, schema, compression="zstd") as writer, ThreadPoolExecutor(_READERS) as pool:
            pieces = range(len(export.reports))
            for start in range(0, len(pieces), _READ_AHEAD):
                for data in pool.map(read, pieces[start : start + _READ_AHEAD]):
                    writer.write_table(pq.ParquetFile(io.BytesIO(data)).read())
        file.seek(0)
        put_stream(join(export.destination, INDEX_FILE), file)


def _name(index: int) -> str:
    return f"index-{index:06d}.parquet"
