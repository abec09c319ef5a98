"""What a query answers, handed on row by row: CSV, JSON, Parquet, or a table for people."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from itertools import islice
from typing import IO, TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from data_engine.sql.session import run_error

if TYPE_CHECKING:
    from rich.table import Table

_CELL = 60  # characters of a cell of a table for people; run lengths are much longer


def write_csv(answer: pa.RecordBatchReader, target: IO[str]) -> int:
    """A header and a row a line. Binary is hexadecimal, nested values are JSON, null is empty. Returns the rows."""
    writer = csv.writer(target, lineterminator="\n")
    writer.writerow(_distinct(answer.schema.names))
    rows = 0
    for row in _rows(answer):
        plain = map(_plain, row)
        writer.writerow([json.dumps(value) if isinstance(value, (list, dict)) else value for value in plain])
        rows += 1
    return rows


def write_json(answer: pa.RecordBatchReader, target: IO[str]) -> int:
    """An array of objects, one a line. Binary is hexadecimal, times are ISO 8601, NaN is null. Returns the rows."""
    names = _distinct(answer.schema.names)
    rows = 0
    target.write("[")
    for row in _rows(answer):
        target.write(",\n" if rows else "\n")
        json.dump(dict(zip(names, map(_plain, row), strict=True)), target, ensure_ascii=False)
        rows += 1
    target.write("\n]\n")
    return rows


def write_parquet(answer: pa.RecordBatchReader, target: IO[bytes]) -> int:
    """Types as DuckDB gives them, zstd. Returns the rows."""
    rows = 0
    names = _distinct(answer.schema.names)
    schema = pa.schema([field.with_name(name) for field, name in zip(answer.schema, names, strict=True)])
    with pq.ParquetWriter(target, schema, compression="zstd") as writer:
        for batch in _batches(answer):
            writer.write_batch(batch.rename_columns(names))
            rows += batch.num_rows
    return rows


def read_rows(answer: pa.RecordBatchReader, limit: int) -> tuple[list[tuple[Any, ...]], bool]:
    """The first `limit` rows, and whether there are more."""
    rows = list(islice(_rows(answer), limit + 1))
    return rows[:limit], len(rows) > limit


def as_table(schema: pa.Schema, rows: Sequence[tuple[Any, ...]]) -> Table:
    """Rows as lines. Numbers are aligned to the right, long text is cut."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for field in schema:
        table.add_column(Text(field.name), justify="right" if _is_number(field.type) else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(_shown(value)) for value in row))
    return table


def as_records(schema: pa.Schema, rows: Sequence[tuple[Any, ...]]) -> Table:
    """A line for each value, for rows that are wider than the terminal."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for number, row in enumerate(rows):
        if number:
            table.add_row("", "")
        for name, value in zip(schema.names, row, strict=True):
            table.add_row(Text(name), Text(_shown(value)))
    return table


def _distinct(names: Sequence[str]) -> list[str]:
    """A join answers with columns of one name: the second `image_id` becomes `image_id_1`, as in DuckDB's tables."""
    taken = set(names)
    found: list[str] = []
    for name in names:
        new, number = name, 0
        while new in found or (number and new in taken):
            number += 1
            new = f"{name}_{number}"
        found.append(new)
    return found


def _batches(answer: pa.RecordBatchReader) -> Iterator[pa.RecordBatch]:
    with _explained():
        yield from answer


def _rows(answer: pa.RecordBatchReader) -> Iterator[tuple[Any, ...]]:
    for batch in _batches(answer):
        yield from zip(*(column.to_pylist() for column in batch.columns), strict=True)


@contextmanager
def _explained() -> Iterator[None]:
    import duckdb

    try:
        yield
    except (duckdb.Error, pa.ArrowException, OSError) as error:
        raise run_error(error) from None


def _plain(value: Any) -> Any:
    """A value that JSON has."""
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    if isinstance(value, (datetime, date, time)):
        return value.isoformat()
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    return value if value is None or isinstance(value, (bool, int, str)) else str(value)


def _shown(value: Any) -> str:
    value = _plain(value)
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:.6g}" if abs(value) < 1e6 else f"{value:,.1f}"
    text = json.dumps(value, ensure_ascii=False) if isinstance(value, (list, dict)) else str(value)
    text = " ".join(text.split())
    return text if len(text) <= _CELL else text[: _CELL - 1] + "…"


def _is_number(type: pa.DataType) -> bool:
    return bool(pa.types.is_integer(type) or pa.types.is_floating(type) or pa.types.is_decimal(type))
