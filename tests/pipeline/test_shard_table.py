"""The plan's shards as a file: all of them back in order, in memory that does not grow with their number."""

from __future__ import annotations

import io
import tracemalloc
from collections.abc import Iterator

import pyarrow.parquet as pq
import pytest

from data_engine.images.shard import FileEntry, Shard
from data_engine.pipeline.shard_table import from_parquet, to_parquet


def shards(count: int, files: int = 50) -> Iterator[tuple[Shard, int | None]]:
    for number in range(count):
        entries = tuple(FileEntry(f"{number}/{i}.jpg", f"s3://bucket/{number}/{i}.jpg", i, None) for i in range(files))
        yield Shard(id=f"{number:016x}", kind="files", uri="s3://bucket", images=files, files=entries), None
    yield Shard(id="t" * 16, kind="tar", uri="s3://bucket/a.tar", size=7), 3
    yield Shard(id="p" * 16, kind="parquet", uri="s3://bucket/a.parquet", row_groups=(0, 2)), None


@pytest.mark.parametrize(("count", "groups"), [(0, 1), (1, 1), (7, 2), (20, 3)])
def test_shards_come_back_as_they_were(monkeypatch: pytest.MonkeyPatch, count: int, groups: int) -> None:
    monkeypatch.setattr("data_engine.pipeline.shard_table._ENTRIES", 350)  # seven shards of 50 files are a group
    data = to_parquet(shards(count))
    assert list(from_parquet(data)) == list(shards(count))
    assert pq.ParquetFile(io.BytesIO(data)).num_row_groups == groups


def test_a_plan_of_no_shards_comes_back() -> None:
    assert list(from_parquet(to_parquet([]))) == []


def test_memory_does_not_grow_with_the_number_of_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data_engine.pipeline.shard_table._ENTRIES", 500)

    def peak(count: int) -> int:
        tracemalloc.start()
        data = to_parquet(shards(count))
        for _ in from_parquet(data):
            pass
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most - len(data)

    peak(10)
    assert peak(400) < 2 * peak(50)
