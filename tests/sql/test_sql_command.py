"""`data-engine sql` as a person meets it: tables, CSV, JSON, Parquet, and the list of views."""

from __future__ import annotations

import csv
import io
import json

import pyarrow.parquet as pq
import pytest
from dataset.small_dataset import build
from typer.testing import CliRunner

from data_engine.cli import app
from data_engine.cli.sql import EXAMPLES
from data_engine.dataset.reader import MaskDataset
from data_engine.errors import StorageError


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("sql-command") / "masks"
    build(root)
    return root


def run(*arguments, code=0, width=100):
    done = CliRunner().invoke(app, ["sql", *map(str, arguments)], env={"COLUMNS": str(width)})
    assert done.exit_code == code, (done.output, done.exception)
    return done


def test_without_a_query_it_shows_what_there_is(root):
    shown = run(root).stdout
    assert "images (12 rows)" in shown
    assert f"masks ({MaskDataset(root).totals.masks} rows)" in shown
    assert "duplicates" in shown
    assert "stability_score  FLOAT" in shown
    assert EXAMPLES[0] in shown


@pytest.mark.parametrize("query", EXAMPLES)
def test_the_examples_are_answered(root, query):
    assert run(root, query).stdout.strip()


def test_a_table_shows_the_first_rows_and_says_so(root):
    done = run(root, "select image_id, area, null as nothing, true as yes from masks order by area", "--rows", 2)
    assert done.stdout.split("\n")[0].split() == ["image_id", "area", "nothing", "yes"]
    assert done.stdout.count(".jpg") == 2
    assert "true" in done.stdout
    assert "the first 2 rows" in done.stderr


def test_rows_wider_than_the_terminal_become_records(root):
    shown = run(root, "from images limit 1").stdout
    assert [line.split()[0] for line in shown.splitlines()] == list(MaskDataset(root).arrow("images").schema.names)
    assert "[bold]" in run(root, "select '[bold]' as x").stdout


def test_csv_holds_every_row(root, tmp_path):
    query = "select image_id, sha256, phash, error_type, [n_masks, 2] as pair from images order by image_id"
    rows = list(csv.DictReader(io.StringIO(run(root, query, "--csv", "-").stdout)))
    images = {row["image_id"]: row for row in MaskDataset(root).images().to_pylist()}
    assert len(rows) == 12
    for row in rows:
        image = images[row["image_id"]]
        assert row["sha256"] == image["sha256"].hex()
        assert row["phash"] == ("" if image["phash"] is None else str(image["phash"]))
        assert row["error_type"] == (image["error_type"] or "")
        assert json.loads(row["pair"]) == [image["n_masks"], 2]
    done = run(root, query, "--csv", tmp_path / "deep/rows.csv")
    assert "12 rows" in done.stdout
    assert (tmp_path / "deep/rows.csv").read_text() == run(root, query, "--csv", "-").stdout


def test_json_is_one_array(root):
    values = "sum(area) total, avg(predicted_iou) iou, 'nan'::float nan, date '2026-01-02' d"
    query = f"select image_id, {values} from masks group by all"
    rows = json.loads(run(root, query, "--json").stdout)
    areas = MaskDataset(root).masks(columns=["area"])["area"].to_pylist()
    assert sum(row["total"] for row in rows) == sum(areas)
    assert {type(row["total"]) for row in rows} == {int}
    assert {(row["nan"], row["d"]) for row in rows} == {(None, "2026-01-02")}
    assert json.loads(run(root, "from masks where false", "--json").stdout) == []


def test_parquet_holds_every_row(root, tmp_path):
    run(root, "from masks order by image_id, mask_id", "--parquet", tmp_path / "all.parquet")
    table = pq.read_table(tmp_path / "all.parquet")
    assert table.num_rows == MaskDataset(root).totals.masks
    assert sorted(table["counts"].to_pylist()) == sorted(MaskDataset(root).masks()["counts"].to_pylist())


def test_columns_of_one_name_are_all_there(root, tmp_path):
    query = "select a.image_id, b.image_id, 1 as image_id_1, a.image_id from images a join images b using (image_id)"
    names = ["image_id", "image_id_2", "image_id_1", "image_id_3"]
    rows = json.loads(run(root, query, "--json").stdout)
    assert len(rows) == 12
    assert {tuple(row) for row in rows} == {tuple(names)}
    assert run(root, query, "--csv", "-").stdout.splitlines()[0].split(",") == names
    run(root, query, "--parquet", tmp_path / "all.parquet")
    assert pq.ParquetFile(tmp_path / "all.parquet").read().column_names == names


def test_no_room_for_an_answer_in_the_making(root, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.TemporaryFile", lambda: open("/dev/full", "r+b", buffering=0))  # noqa: SIM115
    for option in ("--csv", "--parquet"):
        done = CliRunner().invoke(app, ["sql", str(root), "from masks", option, str(tmp_path / "x")])
        assert isinstance(done.exception, StorageError)
        assert "set TMPDIR" in str(done.exception)


def test_a_query_that_fails_leaves_no_file(root, tmp_path):
    query = "select cast(image_id as int) from masks"
    done = CliRunner().invoke(app, ["sql", str(root), query, "--csv", str(tmp_path / "x.csv")])
    assert done.exit_code != 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["select 1", "--json", "--csv", "-"], "choose one"),
        (["--json"], "need a query"),
        (["select 1", "--csv", "ROOT/masks/x.csv"], "inside the dataset"),
        (["select 1", "--parquet", "ROOT/_manifest.json"], "inside the dataset"),
    ],
)
def test_requests_that_are_refused(root, arguments, message):
    arguments = [argument.replace("ROOT", str(root)) for argument in arguments]
    done = CliRunner().invoke(app, ["sql", str(root), *arguments])
    assert message in str(done.exception)
