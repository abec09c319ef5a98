"""Small Parquet files of rows that people made, with a digest of what the rows say.

Parquet's page checksums do not cover its footer, and one flipped bit there turns a value into null or into another type
without a word. What a model made can be made again, what a person made cannot: so the file carries the digest of its
rows, and a reader that finds other rows says so.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

_DIGEST = b"rows_sha256"


def write_rows(rows: Sequence[Mapping[str, Any]], schema: pa.Schema) -> bytes:
    """A Parquet file of the rows, for few of them."""
    table = pa.Table.from_pylist(list(rows), schema)
    table = table.replace_schema_metadata({_DIGEST: _digest(table.to_pylist())})  # as the types round the values
    sink = io.BytesIO()
    # Of a few rows, statistics and dictionaries would be more than half of the file.
    pq.write_table(
        table, sink, compression="zstd", write_page_checksum=True, write_statistics=False, use_dictionary=False
    )
    return sink.getvalue()


def read_rows(data: bytes, schema: pa.Schema) -> list[dict[str, Any]]:
    """The rows of a file of `write_rows`; a column of the schema that the file's version did not know is null.

    Raises ValueError where the file is damaged.
    """
    try:
        table = pq.ParquetFile(io.BytesIO(data), page_checksum_verification=True).read()
        rows = table.to_pylist()
        written = (table.schema.metadata or {}).get(_DIGEST, b"").decode()
    except (pa.ArrowException, OSError, ValueError) as error:
        raise ValueError(str(error)) from None
    if _digest(rows) != written:
        raise ValueError("its rows are not those that were written")
    return [{name: row.get(name) for name in schema.names} for row in rows]


def _digest(rows: Iterable[Mapping[str, Any]]) -> str:
    """Of all values that are there: a null says as much as a column that is not there."""
    values = [{name: value for name, value in row.items() if value is not None} for row in rows]
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()
