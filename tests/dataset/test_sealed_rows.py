"""Rows of people come back as they were written, or not at all."""

from __future__ import annotations

from datetime import datetime, timezone

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_engine.dataset.sealed_rows import read_rows, write_rows

SCHEMA = pa.schema(
    [
        pa.field("name", pa.string(), nullable=False),
        pa.field("number", pa.int32()),
        pa.field("seconds", pa.float32()),
        pa.field("points", pa.list_(pa.float32())),
        pa.field("digest", pa.binary(4)),
        pa.field("at", pa.timestamp("us", "UTC"), nullable=False),
    ]
)
FULL = {
    "name": "Zoë",
    "number": 7,
    "seconds": 4.5,
    "points": [1.0, 2.5],
    "digest": b"\0\xff!x",
    "at": datetime(2026, 1, 2, 3, 4, 5, 678901, timezone.utc),
}
EMPTY = {**dict.fromkeys(SCHEMA.names), "name": "", "at": FULL["at"]}


def test_rows_come_back() -> None:
    assert read_rows(write_rows([FULL, EMPTY], SCHEMA), SCHEMA) == [FULL, EMPTY]
    assert read_rows(write_rows([], SCHEMA), SCHEMA) == []


def test_a_column_that_came_later_is_null_and_one_that_went_is_left_out() -> None:
    later = SCHEMA.append(pa.field("later", pa.string()))
    assert read_rows(write_rows([FULL], SCHEMA), later) == [{**FULL, "later": None}]
    assert read_rows(write_rows([{**FULL, "later": "x"}], later), SCHEMA) == [FULL]


def test_no_flipped_bit_changes_a_row() -> None:
    good = write_rows([FULL], SCHEMA)
    refused = 0
    for position in range(len(good)):
        damaged = bytearray(good)
        damaged[position] ^= 1 << position % 8
        try:
            rows = read_rows(bytes(damaged), SCHEMA)
        except ValueError:
            refused += 1
        else:
            assert rows == [FULL], position
    assert refused > len(good) / 3


@pytest.mark.parametrize("size", [0, 3, 100, -1])
def test_a_file_that_was_cut_off_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match=r"\S"):
        read_rows(write_rows([FULL], SCHEMA)[:size], SCHEMA)


def test_a_file_of_another_writer_is_refused() -> None:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist([FULL], SCHEMA), sink)
    with pytest.raises(ValueError, match="not those that were written"):
        read_rows(sink.getvalue().to_pybytes(), SCHEMA)
