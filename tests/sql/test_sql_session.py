"""A query sees the committed rows and nothing else of this machine, and writes nothing."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time

import pytest
from dataset.small_dataset import build

from data_engine.dataset.reader import MaskDataset
from data_engine.errors import DatasetError, UsageError
from data_engine.sql.session import SqlSession


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("sql") / "masks"
    build(root)
    return root


@pytest.fixture
def session(root):
    with SqlSession(MaskDataset(root)) as session:
        yield session


def answer(session, query):
    return session.query(query).read_all().to_pylist()


def test_views_are_the_committed_rows(session, root):
    garbage = root / "masks" / "loser.parquet"
    garbage.write_bytes((root / "masks" / f"{'a' * 16}-0.parquet").read_bytes())
    dataset = MaskDataset(root)
    (counts,) = answer(
        session,
        "select (select count(*) from images) i, (select count(*) from masks) m, (select count(*) from duplicates) d",
    )
    assert counts == {"i": 12, "m": dataset.totals.masks, "d": 0}
    assert list(session.views)[:2] == ["images", "masks"]
    assert session.views["masks"]["predicted_iou"] == "FLOAT"


@pytest.mark.parametrize(
    "query",
    [
        "select area from masks order by area desc limit 3",
        "from masks limit 3;",
        "with large as (select * from masks where area > 20) select count(*) from large -- a remark",
        "describe masks",
        "summarize images",
        "pivot masks on crop_layer in (0, 1) using count(*) group by image_id",
        "select 1 union select 2",
        "values (1)",
    ],
)
def test_queries_that_read_are_answered(session, query):
    assert answer(session, query)


def test_order_is_kept(session):
    areas = [row["area"] for row in answer(session, "select area from masks order by area desc")]
    assert areas == sorted(areas, reverse=True)


@pytest.mark.parametrize(
    "query",
    [
        "select * from read_csv('/etc/passwd')",
        "select * from read_text('/etc/passwd')",
        "select * from read_blob('{root}/../outside.txt')",
        "select * from read_text('{root}-outside/x.txt')",
        "select * from '/etc/passwd'",
        "select * from glob('/etc/*')",
        "select * from read_parquet('https://example.com/x.parquet')",
        "select * from sniff_csv('/etc/passwd')",
        "select getenv('HOME')",
        "select * from query('copy (select 1) to ''{root}/x.csv''')",
        "copy masks to '/tmp/x.csv'",
        "copy (select 1) to '{root}/x.csv'",
        "with a as (copy (select 1) to '{root}/x.csv') select * from a",
        "explain analyze copy (select 1) to '{root}/x.csv'",
        "export database '{root}/x'",
        "attach '{root}/x.db' as x",
        "install httpfs",
        "load httpfs",
        "set enable_external_access = true",
        "reset lock_configuration",
        "pragma enable_profiling",
        "call pragma_version()",
        "create table x as select 1",
        "drop view masks",
        "insert into duplicates select * from duplicates",
        "with a as (insert into duplicates select * from duplicates returning *) select * from a",
        "select 1; copy (select 1) to '{root}/x.csv'",
        "select * from session",
        "select * from root",
    ],
)
def test_everything_else_is_refused(session, root, query):
    (root.parent / "outside.txt").write_text("secret")
    (root.parent / "masks-outside").mkdir(exist_ok=True)
    (root.parent / "masks-outside/x.txt").write_text("secret")
    before = sorted(path.name for path in root.rglob("*"))
    with pytest.raises(UsageError) as refused:
        answer(session, query.format(root=root))
    assert "secret" not in str(refused.value)
    assert "\n" not in str(refused.value)
    assert sorted(path.name for path in root.rglob("*")) == before


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("select bogus from masks", r'"bogus" not found.*; columns of masks: image_id, mask_id, height'),
        ("select i.bogus from images i", r'"bogus"; columns of images: image_id, uri'),
        ("select * from nowhere", r"nowhere does not exist; the views are images, masks, "),
        ("select * from read_csv('/etc/passwd')", r"a query reads the views images, masks, .* and no other files"),
        ("selec 1", r'syntax error at or near "selec"'),
        ("select 1; select 2", r"one query at a time, this is 2"),
        ("", r"one query at a time, this is 0"),
        ("pivot masks on crop_layer using count(*)", r"name the values of a pivot"),
        ("drop view masks", r"only queries that read"),
        ("select nosuch(area) from masks", r"nosuch does not exist"),
        ("select cast(image_id as int) from masks", r"Could not convert string"),
    ],
)
def test_what_is_wrong_is_said_in_one_line_with_what_there_is(session, query, message):
    with pytest.raises(UsageError, match=message) as refused:
        answer(session, query)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("late", [False, True])
def test_a_file_that_is_gone_is_named(tmp_path, late):
    build(tmp_path / "masks")
    files = [tmp_path / "masks/masks" / f"{shard * 16}-{number}.parquet" for shard in "ab" for number in (0, 1)]
    dataset = MaskDataset(tmp_path / "masks")
    session = SqlSession(dataset) if late else None
    for file in files:
        file.unlink()
    with pytest.raises(DatasetError, match=rf"{files[0].name}.*audit"):
        answer(session or SqlSession(dataset), "select sum(area) from masks")


def test_a_dataset_in_a_store(bucket, root):
    import fsspec

    fs = fsspec.filesystem("s3")
    fs.put(str(root), bucket.removeprefix("s3://") + "/masks", recursive=True)
    fs.pipe_file(f"{bucket}/other.csv", b"a\n1\n")
    with SqlSession(MaskDataset(f"{bucket}/masks")) as session:
        assert answer(session, "select count(*) n from images") == [{"n": 12}]
        for other in (f"{bucket}/other.csv", "/etc/passwd"):
            with pytest.raises(UsageError, match="no other files"):
                answer(session, f"select * from read_csv('{other}')")


INTERRUPTED = """
import data_engine.sql.background as background
from data_engine.cli import main
run = background.BackgroundAnswer._run
background.BackgroundAnswer._run = lambda self: (print("running", flush=True), run(self))
main()
"""


def test_an_endless_query_can_be_interrupted(root):
    query = "select count(*) from range(2000000000000) t(i) where i % 3 = 1"
    command = [sys.executable, "-c", INTERRUPTED, "sql", str(root), query]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "running\n"
        time.sleep(2.5)  # long enough for DuckDB to think of a progress bar
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == 130
        assert process.stdout.read() == ""
    finally:
        process.kill()


def test_an_answer_that_is_not_read_to_its_end_is_dropped(root):
    with SqlSession(MaskDataset(root)) as session:
        first = session.query("select * from range(2000000000000)").read_next_batch()
        assert first.num_rows
    assert not [thread for thread in threading.enumerate() if thread.name == "query"]
