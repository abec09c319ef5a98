from __future__ import annotations

import dataclasses
import tracemalloc

import pytest
from dataset.small_dataset import build, write_manifest
from hypothesis import given
from hypothesis import strategies as st

from data_engine.dataset.commits import CommitRecord, Part, Totals, read_commits
from data_engine.dataset.manifest import Manifest, make_manifest, read_manifest, read_manifest_commits
from data_engine.dataset.reader import MaskDataset
from data_engine.errors import DatasetError

NAMES = st.text("abc/-_.é", max_size=12)
COUNTS = st.integers(0, 2**62)
PARTS = st.builds(Part, file=NAMES, size=COUNTS, sha256=NAMES, rows=COUNTS)
TOTALS = st.builds(Totals, images=COUNTS, masks=COUNTS, errors=st.dictionaries(NAMES, COUNTS, max_size=3))
RECORDS = st.builds(
    CommitRecord,
    fingerprint=NAMES,
    shard=NAMES,
    slice=st.integers(0, 2**31 - 1),
    first_image=COUNTS,
    final=st.booleans(),
    images=PARTS,
    masks=PARTS,
    totals=TOTALS,
    owner=NAMES,
    attempt=NAMES,
    next_offset=st.none() | COUNTS,
    damage=st.none() | st.fixed_dictionaries({"message": NAMES, "offset": COUNTS, "last_key": st.none() | NAMES}),
    timings=st.dictionaries(NAMES, st.floats(0, 1e6), max_size=3),
    code_version=NAMES,
    committed_at=NAMES,
)


@given(RECORDS)
def test_a_record_survives_its_object_and_its_row(tmp_path_factory, record):
    assert CommitRecord.from_json(record.to_json(), "here") == record
    root = tmp_path_factory.mktemp("root")
    manifest, table = make_manifest("f", [record], "me")
    (root / "_manifest").mkdir()
    (root / manifest.commits.file).write_bytes(table)
    (root / "_manifest.json").write_bytes(manifest.to_json())
    assert read_manifest(str(root)) == manifest
    assert read_manifest_commits(str(root), manifest) == [record]


@given(st.lists(TOTALS, max_size=5))
def test_a_sum_is_that_of_each_count_and_each_kind_of_error(parts):
    total = Totals.sum(parts)
    assert total.masks == sum(part.masks for part in parts)
    kinds = {kind for part in parts for kind in part.errors}
    assert total.errors == {kind: sum(part.errors.get(kind, 0) for part in parts) for kind in kinds}
    assert list(total.errors) == sorted(kinds)


def test_the_records_of_a_complete_dataset_come_from_its_table(tmp_path):
    records = build(tmp_path)
    for path in (tmp_path / "_commits").iterdir():
        path.unlink()
    assert MaskDataset(tmp_path).commits == records


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.unlink(), "is gone"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "is not the table"),
        (lambda path: path.write_bytes(bytes(path.stat().st_size)), "sha256 differs"),
    ],
    ids=["gone", "cut", "other"],
)
def test_a_table_that_is_not_the_one_named(tmp_path, damage, message):
    build(tmp_path)
    (table,) = (tmp_path / "_manifest").iterdir()
    damage(table)
    with pytest.raises(DatasetError, match=message) as raised:
        _ = MaskDataset(tmp_path).commits
    assert str(table) in str(raised.value)


def test_what_is_known_is_not_read_again(tmp_path):
    records = build(tmp_path, slices=3, complete=False)
    known = {record.file: record for record in records[1:]}
    for file in known:
        (tmp_path / file).write_text("not a record")
    asked = []
    assert read_commits(str(tmp_path), known, lambda read, total: asked.append((read, total))) == records
    assert asked == [(1, 1)]


def test_many_records_stay_small(tmp_path):
    """A million of them must fit a driver: their strings are shared, and the table is written in pieces."""
    (record,) = build(tmp_path, slices=1, images=1, complete=False)[:1]
    line = dataclasses.replace(record, timings={"fetch": 1.5, "generate": 2.5}, code_version="1.0").to_json()
    tracemalloc.start()
    records = [CommitRecord.from_json(line.replace(b"a/0-0", b"a/%d" % i), "here") for i in range(2000)]
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.reset_peak()
    _, table = make_manifest("f", records, "me")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held / len(records) < 2500
    assert peak - held < 30e6
    assert len(table) / len(records) < 400


def test_a_manifest_without_its_fields(tmp_path):
    for text in (b'{"schema_version": "1.0"}', b'{"schema_version": "1.0", "totals": {}, "commits": []}'):
        with pytest.raises(DatasetError, match="is not a manifest"):
            Manifest.from_json(text, "here")


def test_the_writer_of_a_manifest_names_its_table(tmp_path):
    records = build(tmp_path, complete=False)
    write_manifest(tmp_path, records)
    manifest = read_manifest(str(tmp_path))
    assert manifest is not None
    assert manifest.commits.rows == len(records)
    assert manifest.totals == Totals.sum(record.totals for record in records)
