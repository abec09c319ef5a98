"""The audit passes on a whole dataset and names every single kind of damage."""

import dataclasses
import hashlib
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from dataset.small_dataset import FINGERPRINT, SHARDS, build, write_manifest

from data_engine.dataset.audit import PlannedCount, audit
from data_engine.dataset.reader import MaskDataset
from data_engine.dataset.schema import with_metadata

PLANNED = [PlannedCount(shard, 6) for shard in SHARDS]


def findings(root, planned=PLANNED, fingerprint=FINGERPRINT):
    report = audit(MaskDataset(root), planned, fingerprint)
    assert report.ok == (not report.findings)
    return report.findings


@pytest.fixture
def root(tmp_path):
    build(tmp_path, complete=False)
    return tmp_path


def rewrite(root, table, change):
    """Changes the first file of a table and commits the change as if it had been written so."""
    path = sorted((root / "_commits").iterdir())[0]
    record = json.loads(path.read_text())
    file = root / record[table]["file"]
    data = pq.read_table(file)
    changed = change(data)
    pq.write_table(changed.cast(with_metadata(changed.schema, {"fingerprint": FINGERPRINT})), file)
    content = file.read_bytes()
    record[table] |= {
        "size": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
        "rows": changed.num_rows,
    }
    path.write_text(json.dumps(record))


def with_value(column, row, value):
    def change(table):
        values = table[column].to_pylist()
        values[row] = value
        field = table.schema.field(column)
        return table.set_column(table.schema.get_field_index(column), field, pa.array(values, field.type))

    return change


def test_a_whole_dataset_passes(root):
    report = audit(MaskDataset(root), PLANNED, FINGERPRINT)
    assert report.ok
    assert (report.shards, report.slices, report.totals.images, report.totals.failed) == (2, 4, 12, 4)


def test_processes_find_the_same_in_the_same_order(root, monkeypatch):
    monkeypatch.setattr("data_engine.dataset.audit._WORTH_PROCESSES", 1)
    for file in ("masks/" + "a" * 16 + "-1", "images/" + "b" * 16 + "-0"):
        (root / f"{file}.parquet").write_bytes(b"damaged")
    reports, orders = [], []
    for workers in (1, 2):
        seen = []
        reports.append(audit(MaskDataset(root), PLANNED, FINGERPRINT, seen.append, workers))
        orders.append(seen)
    assert reports[0] == reports[1]
    assert orders[0] == orders[1] == MaskDataset(root).commits
    assert ["not the committed file" in finding for finding in reports[0].findings] == [True, True]


def test_garbage_of_crashes_is_counted_and_harmless(root):
    (root / "images" / "loser.parquet").write_bytes(b"half a file")
    (root / "masks" / ".x.tmp").write_bytes(b"")
    report = audit(MaskDataset(root), PLANNED, FINGERPRINT)
    assert report.ok
    assert report.unreferenced == 2


@pytest.mark.parametrize(
    ("table", "change", "expected"),
    [
        ("masks", with_value("area", 0, 7000), "stored area 7000"),
        ("masks", with_value("bbox_w", 1, 1), "decodes to box"),
        ("masks", with_value("counts", 0, "0"), "do not cover"),
        ("masks", with_value("counts", 0, "\x7f\x7f\x7f"), "do not cover"),
        ("masks", with_value("mask_id", 1, 5), "mask_id out of order"),
        ("masks", with_value("image_id", 0, "b/0-0.jpg"), "not of the image that should be here"),
        ("masks", with_value("height", 0, 41), "do not cover"),
        ("masks", lambda t: t.slice(1), "masks, the images say"),
        ("masks", lambda t: t.drop_columns(["label"]), "columns are not those of schema"),
        ("images", with_value("n_candidates", 0, 1), "candidates are not the sum"),
        ("images", with_value("image_id", 2, "a/0-0.jpg"), "'a/0-0.jpg': 2 rows"),
        ("images", with_value("image_id", 2, "b/0-0.jpg"), "'b/0-0.jpg': 2 rows"),
        ("images", with_value("shard", 0, SHARDS[1]), "rows of another shard"),
        ("images", with_value("phash", 0, None), "no phash"),
        ("images", with_value("error_type", 1, None), "contradict"),
        ("images", with_value("status", 0, "failed"), "contradict"),
        ("images", lambda t: t.slice(0, 2), "the commit says"),
    ],
)
def test_rows_that_are_wrong(root, table, change, expected):
    rewrite(root, table, change)
    assert any(expected in finding for finding in findings(root)), findings(root)


def test_run_lengths_longer_than_the_image_do_no_harm(root):
    """pycocotools writes outside its buffer for such a string; the audit must look before it decodes."""
    rewrite(root, "masks", with_value("counts", 0, "PPPPPP_oo1" * 50))
    assert any("do not cover" in finding for finding in findings(root))


def test_a_flipped_byte(root):
    file = sorted((root / "masks").iterdir())[0]
    data = bytearray(file.read_bytes())
    data[100] ^= 255
    file.write_bytes(data)
    assert any("is not the committed file" in finding for finding in findings(root))


def test_a_file_that_is_gone(root):
    sorted((root / "masks").iterdir())[0].unlink()
    assert any("cannot be read" in finding for finding in findings(root))


def test_a_slice_that_is_missing(root):
    (root / f"_commits/{SHARDS[0]}-00000.json").unlink()
    found = findings(root)
    assert any("slices are missing" in finding for finding in found)
    assert any("starts at image 3, expected 0" in finding for finding in found)


def test_a_shard_that_is_not_finished(root):
    (root / f"_commits/{SHARDS[0]}-00001.json").unlink()
    assert any("is not finished" in finding for finding in findings(root))


def test_a_shard_without_commits_and_one_nobody_planned(root):
    found = findings(root, planned=[PlannedCount(SHARDS[0], 6), PlannedCount("c" * 16, 1)])
    assert any(f"{'c' * 16}: nothing is committed" in finding for finding in found)
    assert any(f"{SHARDS[1]}: is committed but not in the plan" in finding for finding in found)


def test_fewer_rows_than_images_planned(root):
    found = findings(root, planned=[PlannedCount(SHARDS[0], 7), PlannedCount(SHARDS[1], None)])
    assert found == [f"shard {SHARDS[0]}: 7 images in, 6 rows out"]


def test_another_plan(root):
    assert any("belongs to another plan" in finding for finding in findings(root, fingerprint="0" * 64))


def test_a_manifest_that_does_not_add_up(tmp_path):
    build(tmp_path)
    dataset = MaskDataset(tmp_path)
    assert dataset.manifest is not None
    totals = dataclasses.replace(dataset.manifest.totals, masks=1)
    (tmp_path / "_manifest.json").write_bytes(dataclasses.replace(dataset.manifest, totals=totals).to_json())
    assert any("_manifest.json" in finding for finding in findings(tmp_path))


def committed(root, index):
    return sorted((root / "_commits").iterdir())[index]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda root: committed(root, 1).unlink(), "is gone, _manifest.json has it"),
        (lambda root: committed(root, 1).write_text("{"), "cannot be read"),
        (lambda root: committed(root, 1).with_stem("c" * 16).write_text("{}"), "is not in _manifest.json"),
        (
            lambda root: committed(root, 1).write_text(
                committed(root, 1).read_text().replace('"attempt": "1"', '"attempt": "2"')
            ),
            "is not the record that _manifest.json has",
        ),
    ],
    ids=["gone", "damaged", "extra", "different"],
)
def test_records_that_are_not_those_of_the_manifest(tmp_path, change, expected):
    build(tmp_path)
    assert findings(tmp_path) == []
    change(tmp_path)
    (finding,) = findings(tmp_path)
    assert expected in finding


def test_a_manifest_of_another_plan(tmp_path):
    records = build(tmp_path)
    write_manifest(tmp_path, records, fingerprint="0" * 64)
    assert findings(tmp_path) == ["_manifest.json: belongs to another plan (fingerprint 000000000000)"]


def test_a_manifest_with_a_record_twice(tmp_path):
    records = build(tmp_path)
    write_manifest(tmp_path, [*records, records[0]])
    assert any("holds 1 records twice" in finding for finding in findings(tmp_path))


def test_a_slice_of_hundreds_of_masks(tmp_path):
    """pycocotools.area overflows with more than 255 at once."""
    build(tmp_path, slices=1, images=32, complete=False)
    planned = [PlannedCount(shard, 32) for shard in SHARDS]
    report = audit(MaskDataset(tmp_path), planned, FINGERPRINT)
    assert report.ok
    assert report.totals.masks > 2 * 300
    last = MaskDataset(tmp_path).commits[0].masks.rows - 1
    rewrite(tmp_path, "masks", with_value("area", last, 7000))
    assert [f for f in findings(tmp_path, planned) if "stored area 7000" in f and f" row {last}:" in f]
