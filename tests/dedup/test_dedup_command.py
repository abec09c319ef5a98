"""`data-engine dedup` as a user meets it."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from dedup.planted_duplicates import build_pictures, picture
from typer.testing import CliRunner

from data_engine.cli import app
from data_engine.dataset.reader import MaskDataset
from data_engine.dedup.run import deduplicate
from data_engine.dedup.settings import DedupSettings
from data_engine.errors import DatasetError, StorageError, UsageError

pytest.importorskip("duckdb")


@pytest.fixture
def root(tmp_path):
    build_pictures(tmp_path, [picture("a", 0xFF00), picture("b", 0xFF03), picture("c", 0x00FF)])
    return str(tmp_path)


def run(*words):
    return CliRunner().invoke(app, ["dedup", *words], catch_exceptions=False)


def test_what_was_found_is_a_table_and_the_version_is_named(root):
    shown = run(root, "--threads", "1", "--masks").stdout
    for line in ("compared 3", "different hashes 3", "left out (33.3%) 1", "near 1", "duplicates in their image 0"):
        assert line in " ".join(shown.split())
    assert "version 'v1'" in shown
    assert len(MaskDataset(root, deduplicated="v1")) == 2


def test_json_is_all_of_stdout(root):
    found = json.loads(run(root, "--json", "--threshold", "0", "--version", "exactly-equal").stdout)
    assert found["version"] == "exactly-equal"
    assert found["counts"]["left_out"] == 0
    assert found["parameters"]["threshold"] == 0


def test_a_dry_run_says_so(root):
    assert "nothing is written" in run(root, "--dry-run").stdout
    with pytest.raises(DatasetError):
        MaskDataset(root, deduplicated=True)


def test_another_dataset_is_compared_with(root, tmp_path):
    build_pictures(tmp_path / "test", [picture("t", 0xFF01)])
    assert "images of the other dataset 1" in " ".join(run(root, "--against", str(tmp_path / "test")).stdout.split())


INTERRUPTED = """
import data_engine.dedup.run as run
from data_engine.cli import main
def endless(connection, *rest, **more):
    print("running", flush=True)
    connection.execute("select count(*) from range(2000000000000) t(i) where i % 3 = 1").fetchall()
run.{function} = endless
main()
"""


@pytest.mark.parametrize(
    ("function", "options"),
    [("read_images", []), ("cluster_hashes", []), ("counts_of", []), ("find_leaks", ["--against"])],
)
def test_an_endless_query_can_be_interrupted(root, function, options):
    words = ["dedup", root, *options, *([root] if options else [])]
    script = INTERRUPTED.format(function=function)
    process = subprocess.Popen([sys.executable, "-c", script, *words], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "running\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=20) == 130
        assert process.stdout.read() == ""
    finally:
        process.kill()


def test_a_file_of_the_dataset_that_cannot_be_read_is_no_want_of_room(root):
    Path(root, MaskDataset(root).commits[0].images.file).write_bytes(b"x" * 100)
    with pytest.raises(DatasetError, match="cannot be read"):
        deduplicate(root)


def test_a_scratch_file_that_cannot_be_written_is_a_want_of_room(root, monkeypatch):
    import duckdb

    def full(connection):
        query = "select path from duckdb_databases() where database_name = 'scratch'"
        ((file,),) = connection.execute(query).fetchall()
        raise duckdb.IOException(f'Could not write to file "{file}": No space left on device')

    monkeypatch.setattr("data_engine.dedup.run.read_images", full)
    with pytest.raises(StorageError, match=r"ran out of room.*--temp-folder"):
        deduplicate(root)


def test_a_temporary_folder_of_any_name(root, tmp_path):
    folder = tmp_path / "it's ours"
    folder.mkdir()
    assert deduplicate(root, DedupSettings(temp_folder=str(folder)), dry_run=True).counts["images"] == 3


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--exact", "--threshold", "4"], "--threshold goes without --exact"),
        (["--mask-iou", "0.8"], "--mask-iou needs --masks"),
        (["--cosine", "0.95"], "--cosine needs --semantic"),
        (["--model", "sam_vit_b"], "--model needs --semantic"),
        (["--device", "cpu"], "--device needs --semantic"),
        (["--input", "photos"], "--input needs --semantic"),
        (["--ray-address", "auto"], "--ray-address needs --engine ray"),
    ],
)
def test_an_option_that_would_do_nothing_is_refused(root, words, message):
    with pytest.raises(UsageError, match=message):
        run(root, *words)


def test_help_has_examples():
    assert "data-engine dedup masks/" in run("--help").stdout
