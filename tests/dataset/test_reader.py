"""Reading: only committed files, every way in, versions refused."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from dataset.small_dataset import FINGERPRINT, HEIGHT, WIDTH, build, write_manifest
from pycocotools import mask as coco

from data_engine.dataset.commits import Part
from data_engine.dataset.duplicates import DUPLICATES, DatasetState, DedupVersion
from data_engine.dataset.reader import MaskDataset
from data_engine.errors import DatasetError


@pytest.fixture
def root(tmp_path):
    build(tmp_path / "masks")
    return tmp_path / "masks"


def test_iterating_gives_every_image_with_its_own_masks(root):
    images = list(MaskDataset(root))
    assert len(images) == len(MaskDataset(root)) == 12
    assert [image.image_id for image in images[:3]] == ["a/0-0.jpg", "a/0-1.jpg", "a/0-2.jpg"]
    for image in images:
        assert len(image) == image.row["n_masks"]
        assert set(image.masks["image_id"].to_pylist()) <= {image.image_id}
        assert image.masks["mask_id"].to_pylist() == list(range(len(image)))


def test_a_mask_is_the_array_that_pycocotools_decodes(root):
    image = MaskDataset(root)["b/1-2.jpg"]
    for i, counts in enumerate(image.masks["counts"].to_pylist()):
        expected = coco.decode({"size": [HEIGHT, WIDTH], "counts": counts}).astype(bool)
        np.testing.assert_array_equal(image.mask(i), expected)


def test_random_access_equals_iteration(root):
    dataset = MaskDataset(root)
    for image in dataset:
        one = dataset[image.image_id]
        assert one.row == image.row
        assert one.masks.equals(image.masks)
    with pytest.raises(KeyError):
        dataset["c/0-0.jpg"]


def test_tables_can_be_filtered_and_projected(root):
    dataset = MaskDataset(root)
    assert dataset.images(columns=["image_id"]).num_rows == 12
    large = dataset.masks(columns=["area"], filter=pc.field("area") > 20)
    assert 0 < large.num_rows < dataset.totals.masks
    assert min(large["area"].to_pylist()) > 20


def test_sql_sees_exactly_the_committed_rows(root):
    (root / "masks" / "loser.parquet").write_bytes((root / "masks" / f"{'a' * 16}-0.parquet").read_bytes())
    dataset = MaskDataset(root)
    connection = dataset.duckdb()
    assert connection.sql("select count(*) from masks").fetchall() == [(dataset.totals.masks,)]
    assert connection.sql("select count(*) from images where status = 'failed'").fetchall() == [(4,)]


def test_a_dataset_that_still_grows_reads_what_is_committed(tmp_path):
    build(tmp_path, complete=False)
    dataset = MaskDataset(tmp_path)
    assert not dataset.complete
    assert len(list(dataset)) == 12
    (tmp_path / f"_commits/{'b' * 16}-00001.json").unlink()
    assert len(list(MaskDataset(tmp_path))) == 9


def test_an_empty_dataset_has_tables(tmp_path):
    build(tmp_path, slices=0)
    dataset = MaskDataset(tmp_path)
    assert len(dataset) == dataset.masks().num_rows == 0
    assert dataset.duckdb().sql("select count(*) from images").fetchall() == [(0,)]


def test_a_newer_major_version_is_refused(root):
    (root / "_plan/job.json").write_text(json.dumps({"schema_version": "2.0", "fingerprint": FINGERPRINT}))
    with pytest.raises(DatasetError, match=r"schema version 2\.0.*upgrade"):
        MaskDataset(root)


def test_a_newer_minor_version_is_read(root):
    (root / "_plan/job.json").write_text(json.dumps({"schema_version": "1.7", "fingerprint": FINGERPRINT}))
    assert len(MaskDataset(root)) == 12


def test_columns_that_a_newer_minor_version_adds_are_passed_on(root):
    records = []
    for record in MaskDataset(root).commits:
        parts = {}
        for table, part in (("images", record.images), ("masks", record.masks)):
            rows = pq.ParquetFile(root / part.file).read()
            pq.write_table(rows.append_column("new", pa.array(range(rows.num_rows))), root / part.file)
            parts[table] = replace(part, size=(root / part.file).stat().st_size)
        records.append(replace(record, **parts))
    write_manifest(root, records)
    dataset = MaskDataset(root)
    images = list(dataset)
    assert [image.row["new"] for image in images[:3]] == [0, 1, 2]
    assert images[2].masks["new"].to_pylist() == [2, 3, 4, 5]
    assert dataset["a/0-2.jpg"].masks.equals(images[2].masks)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("_plan/job.json", None, r"no dataset at .*: it has no _plan/job\.json"),
        ("_plan/job.json", b"{", "damaged: it is not JSON"),
        ("_manifest.json", b"[]", "damaged: it is not a JSON object"),
        ("_manifest.json", b'{"schema_version": "1.0"}', "is not a manifest"),
    ],
)
def test_what_cannot_be_read_is_named(root, file, content, message):
    (root / file).unlink() if content is None else (root / file).write_bytes(content)
    with pytest.raises(DatasetError, match=message):
        MaskDataset(root)


def test_a_commit_record_that_is_cut_short_is_named(tmp_path):
    records = build(tmp_path, complete=False)
    path = tmp_path / records[0].file
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DatasetError, match=rf"{path.name} is damaged"):
        list(MaskDataset(tmp_path))


def _damaged(path):
    path.write_bytes(b"x" * 100)


@pytest.mark.parametrize("table", ["images", "masks"])
@pytest.mark.parametrize(("break_", "said"), [(Path.unlink, "is gone"), (_damaged, "is damaged")])
@pytest.mark.parametrize("read", [list, lambda dataset: dataset["b/1-2.jpg"]], ids=["all", "one"])
def test_a_committed_file_that_cannot_be_read_is_named_with_the_remedy(root, table, break_, said, read):
    path = root / table / f"{'b' * 16}-1.parquet"
    break_(path)
    with pytest.raises(DatasetError, match=rf"{table}/{path.name} {said}.*data-engine audit"):
        read(MaskDataset(root))


@pytest.mark.parametrize("slice", [0, 1])
@pytest.mark.parametrize(("break_", "said"), [(Path.unlink, "is gone"), (_damaged, "is damaged")])
@pytest.mark.parametrize("read", [MaskDataset.masks, lambda dataset: list(dataset.scan("masks", ["area"]))])
def test_a_scan_over_a_file_that_cannot_be_read_names_it(root, slice, break_, said, read):
    path = root / "masks" / f"{'ab'[slice] * 16}-{slice}.parquet"
    break_(path)
    with pytest.raises(DatasetError, match=r"data-engine audit") as refused:
        read(MaskDataset(root))
    assert path.name in str(refused.value)
    assert said in str(refused.value)


def test_a_column_that_is_none_is_the_callers_error(root):
    with pytest.raises(pa.ArrowInvalid):
        MaskDataset(root).masks(columns=["aera"])


@pytest.mark.parametrize("table", ["images", "masks", "_dedup"])
def test_sql_over_a_file_that_is_gone_names_it(root, table):
    pytest.importorskip("duckdb")
    write_duplicates(root, ["a/0-0.jpg"])
    file = root / ("_dedup/t.parquet" if table == "_dedup" else f"{table}/{'a' * 16}-0.parquet")
    file.unlink()
    with pytest.raises(DatasetError, match=rf"{table}/{file.name} is gone.*data-engine (audit|dedup)"):
        MaskDataset(root).duckdb()


def test_some_images_of_a_slice_are_those_of_the_whole(root):
    dataset = MaskDataset(root)
    record = dataset.commits[1]
    whole = list(dataset.slice(record))
    for start in range(len(whole) + 1):
        for stop in range(start, len(whole) + 1):
            some = list(dataset.rows(record, start, stop))
            assert [image.row for image in some] == [image.row for image in whole[start:stop]]
            assert all(a.masks.equals(b.masks) for a, b in zip(some, whole[start:stop], strict=True))


def test_totals_are_added_up_once(tmp_path, monkeypatch):
    """Progress asks for them at every slice; of a dataset that grows, each time was a sum over all."""
    build(tmp_path, complete=False)
    dataset = MaskDataset(tmp_path)
    assert dataset.totals.images == len(dataset) == 12
    monkeypatch.setattr("data_engine.dataset.reader.Totals.sum", None)
    assert len(dataset) == 12


@pytest.mark.parametrize("content", ["[]", "1", "null", '"x"', "{"])
def test_a_plan_that_is_no_object_is_damage(tmp_path, content):
    (tmp_path / "_plan").mkdir()
    (tmp_path / "_plan/job.json").write_text(content)
    with pytest.raises(DatasetError, match="damaged"):
        MaskDataset(tmp_path)


def test_without_duplicates_found_there_is_an_empty_table(root):
    dataset = MaskDataset(root)
    assert dataset.duplicates.num_rows == 0
    assert dataset.duckdb().sql("select count(*) from duplicates").fetchall() == [(0,)]
    with pytest.raises(DatasetError, match="no duplicates found yet: run `data-engine dedup"):
        MaskDataset(root, deduplicated=True)


def test_a_slice_keeps_its_places_when_duplicates_are_left_out(root):
    """Whoever reads the originals beside a slice counts on them: only iteration leaves out."""
    write_duplicates(root, ["a/0-0.jpg", "b/1-2.jpg"])
    dataset = MaskDataset(root, deduplicated="found")
    assert dataset.left_out == {"a/0-0.jpg", "b/1-2.jpg"}
    assert len(list(dataset)) == len(dataset) == 10
    assert len(list(dataset.slice(dataset.commits[0]))) == 3
    assert dataset.totals.images == 12


def test_a_version_that_leaves_nothing_out_reads_everything(root):
    write_duplicates(root, [])
    dataset = MaskDataset(root, deduplicated="found")
    assert len(dataset) == dataset.images(columns=["image_id"]).num_rows == 12


def write_duplicates(root, image_ids):
    count = len(image_ids)
    columns = [image_ids, range(count), [False] * count, ["near"] * count, [2.0] * count, ["a/0-1.jpg"] * count]
    (root / "_dedup").mkdir()
    pq.write_table(
        pa.table([pa.array(column) for column in columns], DUPLICATES.names).cast(DUPLICATES), root / "_dedup/t.parquet"
    )
    version = DedupVersion(
        version="found",
        dataset=DatasetState.of(FINGERPRINT, True, MaskDataset(root).commits),
        parameters={},
        counts={},
        duplicates=Part(file="_dedup/t.parquet", size=0, sha256="", rows=count),
        owner="o",
    )
    (root / "_dedup/found.json").write_bytes(version.to_json())
