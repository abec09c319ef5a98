"""`data-engine dedup` as a user meets it."""

import json

import pytest
from dedup.planted_duplicates import build_pictures, picture
from typer.testing import CliRunner

from data_engine.cli import app
from data_engine.dataset.reader import MaskDataset
from data_engine.errors import DatasetError

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


def test_help_has_examples():
    assert "data-engine dedup masks/" in run("--help").stdout
