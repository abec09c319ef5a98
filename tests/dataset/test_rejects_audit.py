"""The audit proves the rejects of a dataset too, and old records and datasets without them read as ever."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from dataset.test_audit import rewrite, with_value
from pipeline.tiny_job import config_for, save_model, write_photos

from data_engine.dataset.audit import AuditReport, PlannedCount, audit
from data_engine.dataset.commits import CommitRecord
from data_engine.dataset.manifest import COMMITS, make_manifest
from data_engine.dataset.reader import MaskDataset
from data_engine.dataset.rejects import reject_rows
from data_engine.errors import DatasetError
from data_engine.pipeline.job import generate
from data_engine.pipeline.plan import read_plan

# Thresholds in the midst of what a model of random weights gives.
SETTINGS = (
    "masks.pred_iou_thresh=0.005",
    "masks.stability_score_thresh=0.03",
    "masks.stability_score_offset=0.01",
    "masks.min_mask_region_area=9",
    "masks.box_nms_thresh=0.9",
)
KEEP = ("output.keep_rejects=1", "output.reject_floor_iou=0.0005", "output.reject_floor_stability=0.01")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("rejects")
    model = save_model(root / "tiny.safetensors")
    generate(str(write_photos(root / "photos", 3)), str(root / "out"), config_for(model, *SETTINGS, *KEEP))
    return root / "out"


@pytest.fixture
def root(made: Path, tmp_path: Path) -> Path:
    """A copy to damage, without its manifest: the records in `_commits/` count."""
    for path in made.rglob("*"):
        if path.is_file() and path.parts[-2] != "_manifest" and path.name != "_manifest.json":
            copy = tmp_path / path.relative_to(made)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())
    return tmp_path


def report(root: Path) -> AuditReport:
    plan = read_plan(str(root))
    assert plan is not None
    return audit(
        MaskDataset(str(root)), [PlannedCount(shard.id, shard.images) for shard in plan.shards], plan.fingerprint
    )


def of_reason(reason: str | None) -> Callable[[pa.Table], int]:
    def row(table: pa.Table) -> int:
        return table["reason"].to_pylist().index(reason)

    return row


def where(change: Callable[[pa.Table], int], column: str, value: object) -> Callable[[pa.Table], pa.Table]:
    return lambda table: with_value(column, change(table), value)(table)


def test_a_dataset_with_rejects_passes_complete_and_growing(made: Path, root: Path) -> None:
    assert report(made).findings == []
    assert report(root).findings == []
    (root / "rejects" / "loser.parquet").write_bytes(b"half a file")
    assert report(root).unreferenced == 1


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (where(of_reason("nms"), "reason", "edge"), "rows of reason"),
        (where(of_reason("iou"), "reason", "stability"), "rows of reason stability"),
        (where(of_reason(None), "mask_id", 999), "its rows without a reason are not its"),
        (where(of_reason("nms"), "candidate_id", 999), "candidate_id out of order"),
        (where(of_reason("nms"), "area", 7), "stored area 7"),
        (where(of_reason("nms"), "counts", "0"), "do not cover"),
        (lambda table: table.slice(1), "candidate_id out of order"),
        (lambda table: table.filter(pc.not_equal(table["image_id"], "001.jpg")), "image '001.jpg': its rows without"),
        (lambda table: pa.concat_tables([table.slice(table.num_rows - 9), table]), "in their order"),
        (lambda table: table.drop_columns(["reason"]), "columns are not those of schema"),
    ],
)
def test_rejects_that_are_wrong(root: Path, change: Callable[[pa.Table], pa.Table], expected: str) -> None:
    # Dictionaries of one array can be changed value by value.
    rewrite(root, "rejects", lambda table: change(table.combine_chunks()))
    findings = report(root).findings
    assert any(expected in finding for finding in findings), findings


def test_damaged_and_missing_files(root: Path) -> None:
    (file,) = (root / "rejects").iterdir()
    data = bytearray(file.read_bytes())
    data[100] ^= 255
    file.write_bytes(data)
    assert any("rejects/" in finding and "is not the committed file" in finding for finding in report(root).findings)
    file.unlink()
    assert any("rejects/" in finding and "cannot be read" in finding for finding in report(root).findings)


def test_a_record_that_lost_its_rejects_is_found(root: Path) -> None:
    (path,) = (root / "_commits").iterdir()
    record = json.loads(path.read_text())
    del record["rejects"]
    path.write_text(json.dumps(record))
    assert any("its rows without a reason are not its" in finding for finding in report(root).findings)


def test_records_without_rejects_are_written_as_ever(made: Path) -> None:
    record = MaskDataset(str(made)).commits[0]
    assert record.rejects is not None
    assert CommitRecord.from_json(record.to_json(), "here") == record
    values = json.loads(record.to_json())
    del values["rejects"]
    before = CommitRecord.from_json(json.dumps(values).encode(), "here")
    assert before.rejects is None
    assert json.loads(before.to_json()) == values
    _, table = make_manifest("f", [before], "me")
    assert pa.parquet.read_schema(pa.BufferReader(table)) == COMMITS


def test_rows_are_read_image_by_image(made: Path) -> None:
    dataset = MaskDataset(str(made))
    (record,) = dataset.commits
    assert record.rejects is not None
    found = list(reject_rows(dataset, record.rejects))
    assert [image_id for image_id, _ in found] == ["000.jpg", "001.jpg", "002.jpg"]
    assert pa.concat_tables(rows for _, rows in found).num_rows == record.rejects.rows
    for image_id, rows in found:
        assert rows["image_id"].unique().to_pylist() == [image_id]
        assert rows["candidate_id"].to_pylist() == list(range(rows.num_rows))
    counted = dataset.duckdb().execute("select count(*), count(reason) from rejects").fetchone()
    assert counted == (record.rejects.rows, record.rejects.rows - record.totals.masks)


def test_rejects_that_are_gone_are_named(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made, tmp_path / "masks")
    dataset = MaskDataset(str(tmp_path / "masks"))
    part = dataset.commits[0].rejects
    assert part is not None
    (tmp_path / "masks" / part.file).unlink()
    with pytest.raises(DatasetError, match=rf"{part.file} is gone.*data-engine audit"):
        list(reject_rows(dataset, part))
