"""A dataset in a store: what is read of it is what was asked for, and a failure that passes is no end."""

from __future__ import annotations

from collections.abc import Iterator

import fsspec
import numpy as np
import pytest
from dataset.small_dataset import build, mask_columns, one_slice
from integration.fault_proxy import FaultProxy
from test_reader import write_duplicates

from data_engine.dataset import committed_files
from data_engine.dataset.reader import MaskDataset
from data_engine.errors import DatasetError

SLICES = 4


@pytest.fixture
def proxy(bucket, s3_endpoint, monkeypatch) -> Iterator[FaultProxy]:
    with FaultProxy(s3_endpoint) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        fsspec.get_filesystem_class("s3").clear_instance_cache()
        yield proxy


@pytest.fixture
def root(tmp_path, bucket, proxy):
    """The URL of a small dataset with duplicates."""
    build(tmp_path / "masks")
    write_duplicates(tmp_path / "masks", ["a/0-0.jpg"])
    fsspec.filesystem("s3").put(f"{tmp_path}/masks/", f"{bucket}/masks/", recursive=True)
    proxy.clear()
    return f"{bucket}/masks"


@pytest.fixture
def read(monkeypatch):
    """The bytes of every read of a committed file."""
    lengths: list[int] = []
    original = committed_files.read_range

    def counted(uri, start, stop):
        lengths.append(stop - start)
        return original(uri, start, stop)

    monkeypatch.setattr(committed_files, "read_range", counted)
    return lengths


QUERIES = {
    "sql": lambda dataset: dataset.duckdb().sql("select sum(area) from masks").fetchall()[0][0],
    "arrow": lambda dataset: sum(dataset.masks(columns=["area"])["area"].to_pylist()),
    "scan": lambda dataset: sum(sum(batch["area"].to_pylist()) for batch in dataset.scan("masks", ["area"])),
}


@pytest.mark.parametrize("query", QUERIES)
def test_no_query_asks_for_sizes_that_are_known(root, proxy, query):
    if query == "sql":
        pytest.importorskip("duckdb")
    dataset = MaskDataset(root)
    dataset.commits  # noqa: B018 - reads them
    proxy.clear()
    assert QUERIES[query](dataset) > 0
    assert proxy.count("HEAD", "/(masks|images)/[ab]") == 0
    assert proxy.count("GET", "/masks/[ab]") <= 3 * SLICES


@pytest.mark.parametrize("query", QUERIES)
def test_a_query_of_a_column_reads_no_run_lengths(tmp_path, bucket, proxy, read, query):
    """They are 97 % of the bytes; s3fs reads on for 50 MB when it is asked for a few."""
    if query == "sql":
        pytest.importorskip("duckdb")
    size = with_long_run_lengths(tmp_path / "masks")
    fsspec.filesystem("s3").put(f"{tmp_path}/masks/", f"{bucket}/masks/", recursive=True)
    assert size > 4_000_000
    assert QUERIES[query](MaskDataset(f"{bucket}/masks")) > 0
    assert sum(read) < size / 10


def test_a_file_is_read_a_row_group_at_a_time(tmp_path, bucket, proxy, read, monkeypatch):
    """Slices of many images have large files: what is held of one does not grow with it."""
    monkeypatch.setattr("data_engine.dataset.writer.ROWS_PER_GROUP", 800)
    size = with_long_run_lengths(tmp_path / "masks")
    fsspec.filesystem("s3").put(f"{tmp_path}/masks/", f"{bucket}/masks/", recursive=True)
    dataset = MaskDataset(f"{bucket}/masks")
    (record,) = dataset.commits
    images = dataset.slice(record)
    next(images)
    assert sum(read) < size / 5
    assert len(list(images)) == 19
    assert sum(read) < size * 1.1
    assert len(read) <= 12  # two of a footer, ten row groups


def test_a_query_twice_on_a_connection_reads_once(root, read):
    pytest.importorskip("duckdb")
    connection = MaskDataset(root).duckdb()
    first = connection.sql("select sum(area) from masks").fetchall()
    read.clear()
    assert connection.sql("select sum(area) from masks").fetchall() == first
    assert sum(read) == 0


@pytest.mark.parametrize(
    ("use", "table"), [(list, "masks"), (lambda dataset: dataset["a/0-2.jpg"], "images")], ids=["masks", "images"]
)
def test_a_failure_that_passes_is_waited_out(root, proxy, use, table):
    """s3fs gives up after six answers."""
    dataset = MaskDataset(root)
    dataset.commits  # noqa: B018 - reads them
    fault = proxy.answer(503, "SlowDown", "GET", f"/{table}/a.*parquet", times=7)
    assert use(dataset)
    assert fault.met == 7


def asked(dataset):
    from data_engine.sql.answers import read_rows
    from data_engine.sql.session import SqlSession

    with SqlSession(dataset) as session:
        return read_rows(session.query("select sum(area) from masks"), 1)


@pytest.mark.parametrize("slice", ["a*-0", "b*-1"])
@pytest.mark.parametrize(
    "use",
    [QUERIES["arrow"], QUERIES["scan"], asked, list, lambda dataset: [dataset["a/0-2.jpg"], dataset["b/1-2.jpg"]]],
    ids=["arrow", "scan", "sql", "all", "one"],
)
def test_a_file_that_is_gone_is_named_with_the_remedy(root, use, slice):
    if use is asked:
        pytest.importorskip("duckdb")
    fs = fsspec.filesystem("s3")
    (path,) = fs.glob(f"{root}/masks/{slice}.parquet")
    fs.rm(path)
    with pytest.raises(DatasetError, match=r"data-engine audit") as refused:
        use(MaskDataset(root))
    assert path.rsplit("/", 1)[1] in str(refused.value)
    assert "Traceback" not in str(refused.value)


def test_a_store_of_one_name_can_be_asked(tmp_path):
    """As Hugging Face's: the protocols of most others are several, of which the first was taken."""
    pytest.importorskip("duckdb")
    build(tmp_path / "masks")
    fs = fsspec.filesystem("memory")
    fs.put(f"{tmp_path}/masks/", "/asked/masks/", recursive=True)
    try:
        dataset = MaskDataset("memory://asked/masks")
        assert asked(dataset) == asked(MaskDataset(tmp_path / "masks"))
        assert dataset["b/1-2.jpg"].image_id == "b/1-2.jpg"
    finally:
        fs.rm("/asked", recursive=True)


def test_a_store_that_refuses_says_so_in_an_answer(root, proxy):
    pytest.importorskip("duckdb")
    dataset = MaskDataset(root)
    dataset.commits  # noqa: B018 - reads them
    proxy.answer(403, "AccessDenied", "GET", "/masks/a.*-1.parquet", times=None)
    with pytest.raises(DatasetError, match=r"access denied.*check the permissions"):
        asked(dataset)


def with_long_run_lengths(root):
    """A dataset of one slice, whose run lengths cannot be compressed. Returns the size of its file of masks."""
    rng = np.random.default_rng(0)
    masks = mask_columns(rng, 400)
    images = [(f"{n}.jpg", {**masks, "counts": [rng.bytes(600).hex() for _ in range(400)]}) for n in range(20)]
    return one_slice(root, images).masks.size
