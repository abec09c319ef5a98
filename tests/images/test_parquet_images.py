"""Images in Parquet: columns, row groups as shards, nulls, damage, resuming."""

import resource
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from encoded import outcome, png, read_all

from data_engine.errors import SourceError
from data_engine.images.settings import InputSettings
from data_engine.images.shard import ShardDamaged
from data_engine.images.sources import check_unchanged, list_shards, read_shard

SETTINGS = InputSettings()
IMAGES = [png(i) for i in range(10)]
HUGGING_FACE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def write(path: Path, columns: dict, rows: int = 3, **options: object) -> str:
    pq.write_table(pa.table(columns), path, row_group_size=rows, write_page_checksum=True, **options)
    return str(path)


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), HUGGING_FACE])
def test_columns_of_images(tmp_path: Path, kind: pa.DataType) -> None:
    values = [{"bytes": data, "path": "x"} for data in IMAGES] if kind == HUGGING_FACE else IMAGES
    uri = write(tmp_path / "a.parquet", {"label": list(range(10)), "image": pa.array(values, kind)})
    listing = list_shards(uri, SETTINGS)
    assert (listing.kind, listing.images, len(listing.shards)) == ("parquet", 10, 1)
    assert outcome(read_all(uri)) == {f"a.parquet/{i}": data for i, data in enumerate(IMAGES)}


def test_row_groups_are_shards(tmp_path: Path) -> None:
    uri = write(tmp_path / "a.parquet", {"image": IMAGES})
    settings = InputSettings(images_per_shard=5)
    listing = list_shards(uri, settings)
    assert [shard.row_groups for shard in listing.shards] == [(0, 1), (2, 3)]
    assert [shard.images for shard in listing.shards] == [6, 4]
    assert len({shard.id for shard in listing.shards}) == 2
    assert list_shards(uri, settings) == listing
    images = read_all(uri, settings)
    assert [image.image_id for image in images] == [f"a.parquet/{i}" for i in range(10)]
    assert [image.index for image in images] == [*range(6), *range(4)]
    for shard in listing.shards:
        check_unchanged(shard)
        whole = list(read_shard(shard, settings))
        for start in range(len(whole) + 1):
            assert list(read_shard(shard, settings, start=start, seen_ids=["x"])) == whole[start:]


def test_folder_of_files(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    for i in range(3):
        write(tmp_path / "train" / f"{i}.parquet", {"image": IMAGES[i : i + 2]})
    write(tmp_path / "empty.parquet", {"image": pa.array([], pa.binary())})
    (tmp_path / "README.md").write_text("x")
    listing = list_shards(str(tmp_path), SETTINGS)
    assert (listing.kind, listing.images, dict(listing.skipped)) == ("parquet", 6, {"not Parquet": 1})
    assert [image.image_id for image in read_all(tmp_path)][:3] == [
        "train/0.parquet/0",
        "train/0.parquet/1",
        "train/1.parquet/0",
    ]


def test_null_empty_and_too_large(tmp_path: Path) -> None:
    uri = write(tmp_path / "a.parquet", {"image": [b"1", None, b"", b"x" * 11]})
    images = outcome(read_all(uri, InputSettings(max_image_bytes=10)))
    assert list(images.values()) == [b"1", "null", "empty", "too_large"]
    values = [None, {"bytes": None, "path": "/etc/passwd"}, {"bytes": b"1", "path": None}]
    uri = write(tmp_path / "b.parquet", {"image": pa.array(values, HUGGING_FACE)})
    assert list(outcome(read_all(uri)).values()) == ["null", "null", b"1"]


def test_ids_from_a_column(tmp_path: Path) -> None:
    columns = {"image": IMAGES[:5], "name": ["a", "b", "a", None, "caf\u00e9"]}
    uri = write(tmp_path / "a.parquet", columns, rows=5)
    named = read_all(uri, InputSettings(id_column="name"))
    assert [image.image_id for image in named] == ["a", "b", "a#2", "a.parquet/3", "caf\u00e9"]
    (shard,) = list_shards(uri, InputSettings(id_column="name")).shards
    assert list(read_shard(shard, InputSettings(id_column="name"), start=2)) == named[2:]
    nameless = write(tmp_path / "b.parquet", {"image": IMAGES[:4], "name": ["", "", "", "d"]}, rows=2)
    ids = [image.image_id for image in read_all(nameless, InputSettings(id_column="name", images_per_shard=2))]
    assert ids == ["b.parquet/0", "b.parquet/1", "b.parquet/2", "d"]
    for wrong in ("nope", "image"):
        with pytest.raises(SourceError, match=wrong):
            list_shards(uri, InputSettings(id_column=wrong))


def test_an_id_in_two_shards_is_refused(tmp_path: Path) -> None:
    for name in ("1", "2"):
        write(tmp_path / f"{name}.parquet", {"image": IMAGES[:2], "key": [7, int(name)]})
    with pytest.raises(SourceError, match=r"7 is in column 'key' of more than one"):
        list_shards(str(tmp_path), InputSettings(id_column="key"))
    assert len(read_all(tmp_path)) == 4


def test_columns_that_are_wrong_or_ambiguous(tmp_path: Path) -> None:
    uri = write(tmp_path / "a.parquet", {"left": IMAGES, "right": IMAGES, "label": list(range(10))})
    with pytest.raises(SourceError, match=r"left, right.*input\.image_column"):
        list_shards(uri, SETTINGS)
    assert len(read_all(uri, InputSettings(image_column="right"))) == 10
    with pytest.raises(SourceError, match=r"'nope'.*left, right, label"):
        list_shards(uri, InputSettings(image_column="nope"))
    with pytest.raises(SourceError, match="'label' is int64"):
        list_shards(uri, InputSettings(image_column="label"))
    uri = write(tmp_path / "b.parquet", {"label": [1]})
    with pytest.raises(SourceError, match="label"):
        list_shards(uri, SETTINGS)
    with pytest.raises(SourceError, match="no column holds images"):
        list_shards(uri, InputSettings(kind="parquet"))


def test_damaged_pages_cost_their_row_group_and_no_more(tmp_path: Path) -> None:
    noise = [np.random.default_rng(i).bytes(4000) for i in range(30)]
    path = tmp_path / "a.parquet"
    write(path, {"image": noise}, rows=10, compression="none", use_dictionary=False)
    whole = bytearray(path.read_bytes())
    assert whole.count(noise[14]) == 1  # others are in the statistics too
    whole[whole.index(noise[14]) + 2000] ^= 1
    path.write_bytes(whole)
    images = read_all(path)
    assert len(images) == 30
    assert len({image.image_id for image in images}) == 30
    assert [image.data for image in images[:10]] == noise[:10]
    assert [image.data for image in images[20:]] == noise[20:]
    lost = [image for image in images if image.error]
    assert lost
    assert all(10 <= image.index < 20 and image.error.type == "corrupt" for image in lost)
    assert all(image.data == noise[image.index] for image in images if not image.error)
    (shard,) = list_shards(str(path), SETTINGS).shards
    for start in (5, 15, 25):
        assert list(read_shard(shard, SETTINGS, start=start)) == images[start:]


@pytest.mark.parametrize("data", [b"", b"PAR1", b"PAR1" + bytes(100) + b"PAR1", b"<html>" * 10])
def test_what_is_no_parquet_file(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.parquet").write_bytes(data)
    with pytest.raises(SourceError, match="not a whole Parquet file"):
        list_shards(str(tmp_path), SETTINGS)


def test_a_changed_file_is_not_read(tmp_path: Path) -> None:
    uri = write(tmp_path / "a.parquet", {"image": IMAGES})
    (shard,) = list_shards(uri, SETTINGS).shards
    write(tmp_path / "a.parquet", {"image": IMAGES[::-1]})
    for read in (lambda: check_unchanged(shard), lambda: next(read_shard(shard, SETTINGS))):
        with pytest.raises(ShardDamaged) as caught:
            read()
        assert caught.value.reason == "changed"
    (tmp_path / "a.parquet").unlink()
    with pytest.raises(ShardDamaged, match="gone"):
        check_unchanged(shard)


def test_memory_does_not_grow_with_the_row_group(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    schema = pa.schema([("image", pa.binary())])
    with pq.ParquetWriter(path, schema, compression="none", use_dictionary=False, write_page_checksum=True) as writer:
        batch = pa.table({"image": [np.random.default_rng(0).bytes(1 << 18)] * 600}, schema)  # 150 MB, one row group
        writer.write_table(batch)
    del batch
    pa.default_memory_pool().release_unused()
    (shard,) = list_shards(str(path), SETTINGS).shards
    reading = read_shard(shard, SETTINGS)
    next(reading)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    allocated = max(pa.total_allocated_bytes() for _ in reading)
    assert allocated < 64 << 20
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 80 << 10
