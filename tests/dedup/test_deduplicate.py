"""From a dataset to a version of duplicates beside it, and back through the reader."""

import json

import pyarrow as pa
import pytest
from dedup.planted_duplicates import build_pictures, picture

from data_engine.dataset.duplicates import DUPLICATES, MASK_DUPLICATES, newest_version, read_version
from data_engine.dataset.reader import MaskDataset
from data_engine.dedup import run, versions
from data_engine.dedup.run import deduplicate
from data_engine.dedup.settings import DedupSettings
from data_engine.errors import ConfigError, DatasetError, StorageError, UsageError

pytest.importorskip("duckdb")

SCENE = 0x0123_4567_89AB_CDEF
OTHER = SCENE ^ (2**64 - 1)
LARGE = {"width": 120, "height": 80}


def rows_of(root, version=True):
    return {row["image_id"]: row for row in MaskDataset(root, deduplicated=version).duplicates.to_pylist()}


def find(root, threshold=4, masks_iou=None, **options):
    return deduplicate(str(root), DedupSettings(threshold=threshold, masks_iou=masks_iou, threads=1), **options)


@pytest.fixture
def root(tmp_path):
    build_pictures(
        tmp_path,
        [
            picture("a", SCENE),
            picture("a-copy", SCENE, content="a"),
            picture("a-large", SCENE ^ 0b11, **LARGE),
            picture("b", OTHER),
        ],
        [
            picture("b-other", OTHER ^ 0b1111, n_masks=3),
            picture("c", SCENE ^ 0xFFFF),
            picture("failed", None, content="a"),
            picture("failed-copy", None, content="a"),
        ],
    )
    return tmp_path


def test_every_duplicate_says_of_what_why_and_how_far(root):
    counts = find(root).counts
    assert rows_of(root) == {
        "a-large": row("a-large", 0),
        "a": row("a-large", 0, "a", "near", 2),
        "a-copy": row("a-large", 0, "a-copy", "near", 2),
        "b-other": row("b-other", 1),
        "b": row("b-other", 1, "b", "near", 4),
    }
    assert counts == counts | {
        "images": 8,
        "compared": 6,
        "hashes": 5,
        "clusters": 2,
        "largest_cluster": 3,
        "left_out": 3,
        "near": 3,
        "exact": 0,
        "same_bytes": 1,
        "chained": 0,
        "masks_left_out": 6,
    }


def row(of, cluster, image_id=None, reason=None, distance=None):
    return {
        "image_id": image_id or of,
        "cluster_id": cluster,
        "keep": image_id is None,
        "reason": reason,
        "distance": distance,
        "of": of,
    }


def test_exact_only_looks_at_the_bytes(root):
    find(root, threshold=None)
    assert rows_of(root) == {"a": row("a", 0), "a-copy": row("a", 0, "a-copy", "exact", 0)}


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        ({"width": 61}, {"n_masks": 9}),
        ({"n_masks": 3}, {"n_masks": 2}),
        ({}, {}),
    ],
    ids=["largest", "most masks", "smallest id"],
)
def test_the_image_that_stays(tmp_path, better, worse):
    first, second = picture("a", SCENE, **better), picture("b", SCENE, **worse)
    if better:
        first, second = second | {"image_id": "a"}, first | {"image_id": "b"}
    build_pictures(tmp_path, [first], [second])
    find(tmp_path)
    kept = [name for name, found in rows_of(tmp_path).items() if found["keep"]]
    assert kept == (["b"] if better else ["a"])


def test_a_chain_is_one_cluster_and_is_counted(tmp_path):
    chain = [SCENE ^ ((1 << 4 * i) - 1) for i in range(4)]  # 4 bits from one to the next
    build_pictures(tmp_path, [picture(f"{i}", phash) for i, phash in enumerate(chain)])
    counts = find(tmp_path).counts
    assert (counts["clusters"], counts["left_out"], counts["chained"]) == (1, 3, 2)
    assert [found["distance"] for found in rows_of(tmp_path).values()] == [None, 4, 8, 12]


def test_readers_leave_out_what_is_not_kept(root):
    find(root)
    dataset = MaskDataset(root, deduplicated=True)
    kept = ["a-large", "b-other", "c", "failed", "failed-copy"]
    assert [image.image_id for image in dataset] == kept
    assert len(dataset) == 5
    assert dataset.images()["image_id"].to_pylist() == kept
    assert set(dataset.masks()["image_id"].to_pylist()) == {"a-large", "b-other", "c"}
    assert dataset.masks().num_rows == 7
    assert dataset["c"].image_id == "c"
    with pytest.raises(KeyError):
        dataset["a-copy"]
    with dataset.duckdb() as connection:
        assert connection.sql("select count(*) from images").fetchall() == [(5,)]
        assert connection.sql("select count(*) from masks").fetchall() == [(7,)]
        assert connection.sql("select count(*) from duplicates where keep").fetchall() == [(2,)]
    assert len(list(MaskDataset(root))) == 8


def test_versions_stay_side_by_side(root):
    assert [find(root).version.version, find(root, threshold=0).version.version] == ["v1", "v2"]
    find(root, threshold=2, version="strict")
    assert len(MaskDataset(root, deduplicated="v1")) == 5
    assert len(MaskDataset(root, deduplicated="v2")) == 7
    assert MaskDataset(root, deduplicated=True).dedup.version == "strict"
    assert read_version(str(root), "strict").parameters["threshold"] == 2


def test_a_name_is_used_once(root):
    find(root, version="mine")
    before = sorted((root / "_dedup").iterdir())
    with pytest.raises(DatasetError, match="has a version 'mine' of duplicates already"):
        find(root, version="mine")
    assert sorted((root / "_dedup").iterdir()) == before
    for name in ("../x", "", "a/b", ".hidden"):
        with pytest.raises(UsageError, match="no name of a version"):
            find(root, version=name)


def test_two_at_once_take_different_names(root, monkeypatch):
    """The second one sees no version when it chooses its name, and finds it taken when it commits."""
    find(root)
    names = iter([[], ["v1"]])
    monkeypatch.setattr(versions, "version_names", lambda _: next(names))
    assert find(root).version.version == "v2"


def test_a_dataset_that_cannot_be_written_beside_is_said_before_the_work(root, monkeypatch):
    def refused(*_):
        raise StorageError("access denied")

    monkeypatch.setattr(versions, "put", refused)
    monkeypatch.setattr(run, "read_images", lambda _: pytest.fail("it began"))
    with pytest.raises(StorageError, match="access denied"):
        find(root)


def test_a_dry_run_writes_nothing(root):
    before = sorted(root.rglob("*"))
    report = find(root, dry_run=True)
    assert (report.version, report.counts["left_out"]) == (None, 3)
    assert sorted(root.rglob("*")) == before


def test_a_table_that_cannot_be_written_leaves_nothing(root, monkeypatch):
    put_table = run.put_table

    def refused(root, path, name, rows):
        if name.startswith("mask"):
            raise StorageError("the store is gone")
        return put_table(root, path, name, rows)

    monkeypatch.setattr(run, "put_table", refused)
    nothing = MASK_DUPLICATES.empty_table()
    monkeypatch.setattr(run, "mask_duplicates", lambda dataset, records, *_: iter([nothing] * len(records)))
    with pytest.raises(StorageError):
        find(root, masks_iou=0.9)
    (kept,) = (root / "_dedup").iterdir()  # for the next run
    assert kept.name.startswith("masks-0.9-")


def test_a_name_that_is_taken_at_the_last_moment_leaves_nothing(root, monkeypatch):
    find(root, version="mine")
    before = sorted((root / "_dedup").iterdir())
    monkeypatch.setattr(run, "refuse_taken", lambda root, name: None)
    with pytest.raises(DatasetError, match="already"):
        find(root, version="mine")
    assert sorted((root / "_dedup").iterdir()) == before


@pytest.mark.parametrize("error", [StorageError("the answer was lost"), KeyboardInterrupt()])
def test_a_version_whose_writer_did_not_learn_of_it_is_whole(root, monkeypatch, error):
    put_if_absent = versions.put_if_absent

    def written(uri, data):
        put_if_absent(uri, data)
        raise error

    monkeypatch.setattr(versions, "put_if_absent", written)
    with pytest.raises(type(error)):
        find(root)
    assert len(MaskDataset(root, deduplicated="v1")) == 5


def test_a_crash_before_the_last_write_leaves_no_version(root, monkeypatch):
    def refused(*_):
        raise StorageError("the store is gone")

    monkeypatch.setattr(versions, "put_if_absent", refused)
    with pytest.raises(StorageError):
        find(root)
    assert newest_version(str(root)) is None
    (root / "_dedup" / "duplicates-of-a-killed-process.parquet").write_bytes(b"half")
    assert newest_version(str(root)) is None
    with pytest.raises(DatasetError, match="no duplicates found yet"):
        MaskDataset(root, deduplicated=True)


def test_a_dataset_that_has_grown_is_not_taken_for_compared(tmp_path):
    rows = [picture("a", SCENE), picture("b", SCENE)], [picture("c", SCENE)]
    build_pictures(tmp_path, rows[0], complete=False)
    find(tmp_path)
    build_pictures(tmp_path, *rows)
    with pytest.raises(DatasetError, match=r"grown since version 'v1' .*: 2 of 3 images were compared"):
        MaskDataset(tmp_path, deduplicated=True)
    assert [image.image_id for image in MaskDataset(tmp_path, deduplicated="v1")] == ["a", "c"]
    find(tmp_path)
    assert [image.image_id for image in MaskDataset(tmp_path, deduplicated=True)] == ["a"]


def test_a_version_of_another_dataset_is_refused(root):
    find(root)
    path = root / "_dedup/v1.json"
    path.write_text(path.read_text().replace("f" * 64, "e" * 64))
    with pytest.raises(DatasetError, match="is of another dataset"):
        MaskDataset(root, deduplicated=True)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "v1.json").write_text("[]"), "damaged"),
        (lambda folder: (folder / "v1.json").write_text('{"schema_version": "1.0"}'), "not a version of duplicates"),
        (lambda folder: next(folder.glob("*.parquet")).unlink(), "is gone"),
        (lambda folder: next(folder.glob("*.parquet")).write_bytes(b"x"), "is damaged"),
    ],
)
def test_damage_is_named(root, damage, message):
    find(root)
    damage(root / "_dedup")
    with pytest.raises(DatasetError, match=message):
        len(MaskDataset(root, deduplicated=True))


def test_a_version_that_is_not_there_names_those_that_are(root):
    find(root)
    with pytest.raises(DatasetError, match=r"no version 'v7' .*there are: v1"):
        MaskDataset(root, deduplicated="v7")


def test_the_table_has_its_schema_and_says_where_it_is_from(root):
    find(root)
    made = read_version(str(root), "v1")
    table = pa.parquet.read_table(root / made.duplicates.file)
    assert table.schema.equals(DUPLICATES)
    assert json.loads(table.schema.metadata[b"data_engine"])["parameters"]["threshold"] == 4
    assert made.dataset.images == 8


def test_in_an_object_store(root, bucket):
    import fsspec

    fs = fsspec.filesystem("s3")
    fs.put(str(root), f"{bucket}/masks", recursive=True)
    assert find(f"{bucket}/masks").version.version == "v1"
    with pytest.raises(DatasetError, match="already"):
        find(f"{bucket}/masks", version="v1")
    find(root)
    remote = MaskDataset(f"{bucket}/masks", deduplicated=True)
    assert remote.duplicates.equals(MaskDataset(root, deduplicated=True).duplicates)
    assert len(list(remote)) == 5
    with remote.duckdb() as connection:
        assert connection.sql("select count(*) from images").fetchall() == [(5,)]


def test_an_empty_dataset(tmp_path):
    build_pictures(tmp_path)
    assert find(tmp_path).counts["left_out"] == 0
    assert len(MaskDataset(tmp_path, deduplicated=True)) == 0


@pytest.mark.parametrize(
    "options",
    [{"threshold": -1}, {"threshold": 17}, {"masks_iou": 1.0}, {"memory": "lots"}, {"temp_folder": "/nowhere"}],
)
def test_settings_that_make_no_sense_are_refused(root, options):
    with pytest.raises(ConfigError, match=r"threshold|IoU|memory|folder"):
        deduplicate(str(root), DedupSettings(**options))
