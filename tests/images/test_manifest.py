"""Lists of URIs: every format, what they may name, and what is refused."""

import json
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from encoded import outcome, read_all

from data_engine.errors import SourceError
from data_engine.images.settings import InputSettings
from data_engine.images.sources import list_shards, read_shard


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "sub").mkdir()
    for name in ("a.png", "b.png", "sub/c d.png"):
        (tmp_path / name).write_bytes(name.encode())
    return tmp_path


def test_text(folder: Path) -> None:
    absolute = folder / "b.png"
    (folder / "m.txt").write_bytes(f"\ufeffsub/c d.png\r\n\r\n./a.png\n{absolute}\na.png\na.png\nno.png".encode())
    assert outcome(read_all(folder / "m.txt")) == {
        "sub/c d.png": b"sub/c d.png",
        "./a.png": b"a.png",
        str(absolute): b"b.png",
        "a.png": b"a.png",
        "a.png#2": b"a.png",
        "no.png": "unreadable",
    }
    listing = list_shards(str(folder / "m.txt"), InputSettings(images_per_shard=4))
    assert (listing.kind, listing.images, [shard.images for shard in listing.shards]) == ("manifest", 6, [4, 2])


def test_a_name_that_is_an_address_takes_memory_once(tmp_path: Path) -> None:
    (tmp_path / "m.txt").write_text("s3://photos/2024/0001.jpg\n")
    (shard,) = list_shards(str(tmp_path / "m.txt"), InputSettings()).shards
    assert shard.files[0].image_id is shard.files[0].uri


@pytest.mark.parametrize("column", ["uri", "URL", "file_name", "image_path", "s3_uri"])
def test_csv(folder: Path, column: str) -> None:
    (folder / "m.csv").write_text(f'id,{column},note\n1,a.png,"x, y"\n2,"sub/c d.png",z\n\n')
    assert outcome(read_all(folder / "m.csv")) == {"a.png": b"a.png", "sub/c d.png": b"sub/c d.png"}
    named = read_all(folder / "m.csv", InputSettings(id_column="id"))
    assert outcome(named) == {"1": b"a.png", "2": b"sub/c d.png"}
    with pytest.raises(SourceError, match="no column 'nope'"):
        read_all(folder / "m.csv", InputSettings(uri_column="nope"))


def test_csv_of_one_column_without_a_header(folder: Path) -> None:
    (folder / "m.csv").write_text("a.png\nb.png\n")
    assert list(outcome(read_all(folder / "m.csv"))) == ["a.png", "b.png"]


def test_tsv_and_a_chosen_column(folder: Path) -> None:
    (folder / "m.tsv").write_text("left\tright\na.png\tb.png\n")
    with pytest.raises(SourceError, match=r"left, right.*input\.uri_column"):
        read_all(folder / "m.tsv")
    assert outcome(read_all(folder / "m.tsv", InputSettings(uri_column="right"))) == {"b.png": b"b.png"}


def test_json_lines(folder: Path) -> None:
    (folder / "m.jsonl").write_text('{"url": "a.png", "id": 7}\n\n"b.png"\n{"id": 8, "url": "\\ud800.png"}\n')
    images = read_all(folder / "m.jsonl")
    assert outcome(images) == {"a.png": b"a.png", "b.png": b"b.png", "\\ud800.png": "unreadable"}
    assert all((image.image_id + image.uri).encode() for image in images)


def test_parquet(folder: Path) -> None:
    pq.write_table(pa.table({"key": [1, 2, 3], "path": ["a.png", None, "b.png"]}), folder / "m.parquet")
    assert list_shards(str(folder / "m.parquet"), InputSettings()).kind == "manifest"
    assert outcome(read_all(folder / "m.parquet")) == {"a.png": b"a.png", "b.png": b"b.png"}
    assert list(outcome(read_all(folder / "m.parquet", InputSettings(id_column="key")))) == ["1", "3"]
    pq.write_table(pa.table({"path": [1, 2]}), folder / "n.parquet")
    with pytest.raises(SourceError, match=r"input\.uri_column"):
        read_all(folder / "n.parquet")


def test_an_entry_without_an_id_is_called_as_it_is_written(folder: Path) -> None:
    (folder / "m.jsonl").write_text('{"url": "a.png", "id": null}\n{"url": "b.png", "id": ""}\n')
    (folder / "m.csv").write_text("url,id\na.png,\nb.png,\n")
    pq.write_table(pa.table({"url": ["a.png", "b.png"], "id": pa.array([None, ""])}), folder / "m.parquet")
    for name in ("m.jsonl", "m.csv", "m.parquet"):
        assert list(outcome(read_all(folder / name, InputSettings(id_column="id")))) == ["a.png", "b.png"]


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("m.txt", b"a.png\ncaf\xe9.png\n", "line 2 is not UTF-8"),
        ("m.txt", b"a.png\n\0\n", "line 2 is not text"),
        ("m.csv", b'uri,id\n"a.png,1\n', "near row"),
        ("m.csv", b"id,uri\n1\n", "row 2 has 1 of 2 columns"),
        ("m.jsonl", b'{"uri": "a.png"}\n{', "line 2 is not JSON"),
        ("m.jsonl", b"[1]\n", "line 1"),
        ("m.jsonl", b'{"uri": 3}\n', "line 1"),
        ("m.txt", b"\n\n", "no images found"),
        ("m.csv", b"", "no images found"),
        ("m.parquet", b"PAR1", "Parquet"),
    ],
)
def test_what_is_no_manifest(tmp_path: Path, name: str, data: bytes, says: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(SourceError, match=says):
        list_shards(str(tmp_path / name), InputSettings())


def test_remote_manifests_do_not_reach_local_files(folder: Path) -> None:
    fs = fsspec.filesystem("memory")
    secret = folder / "a.png"
    fs.pipe_file("/m/list.txt", f"{secret}\nfile://{secret}\nFILE://{secret}\nx.png\nmemory://m/x.png\n".encode())
    fs.pipe_file("/m/x.png", b"x")
    images = read_all("memory://m/list.txt")
    assert [image.data for image in images] == [None, None, None, b"x", b"x"]
    assert "allow_local_in_remote_manifests" in str(images[0].error)
    allowed = InputSettings(allow_local_in_remote_manifests=True)
    assert [image.data for image in read_all("memory://m/list.txt", allowed)][:2] == [b"a.png", b"a.png"]
    # the plan of a listing that was allowed to does not allow a reader to
    (shard,) = list_shards("memory://m/list.txt", allowed).shards
    assert [image.data for image in read_shard(shard, InputSettings())][:2] == [None, None]


@pytest.mark.parametrize(
    "entry",
    [
        "simplecache::a.png",
        "ftp://example.org/a.png",
        "s3://key:secret@bucket/a.png",
        "x" * 5000,
        "/dev/zero",
        "/",
        "http://[bad/a.png",
        "a\tb.png",
    ],
)
def test_entries_that_cannot_be_fetched_are_failed_images(tmp_path: Path, entry: str) -> None:
    (tmp_path / "m.txt").write_text(entry + "\n")
    (image,) = read_all(tmp_path / "m.txt")
    assert image.error is not None
    assert image.error.type == "unreadable"
    assert "secret" not in str(image.error) + image.image_id + image.uri


def test_signatures_stay_out_of_the_dataset(tmp_path: Path) -> None:
    url = "http://127.0.0.1:9/a.png?X-Amz-Signature=planted&x=1"
    (tmp_path / "m.jsonl").write_text(json.dumps({"url": url}) + "\n")
    (shard,) = list_shards(str(tmp_path / "m.jsonl"), InputSettings()).shards
    assert (shard.files[0].location, shard.files[0].uri) == (url, "http://127.0.0.1:9/a.png?x=1")
    assert shard.files[0].image_id == shard.files[0].uri
    (image,) = read_shard(shard, InputSettings())
    assert "planted" not in f"{image.image_id} {image.uri} {image.error}"


def test_folders_named_like_parameters_are_part_of_the_name(folder: Path) -> None:
    names = ["design=new/a.png", "design=new/b.png", "user_key=7/a.png", "signal=3.png"]
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(name.encode())
    (folder / "list.txt").write_text("\r\n".join(names))
    images = read_all(folder / "list.txt")
    assert outcome(images) == {name: name.encode() for name in names}
    assert [image.uri for image in images] == [str(folder / name) for name in names]


def test_manifests_that_name_an_image_twice_between_them(folder: Path) -> None:
    (folder / "lists").mkdir()
    for name in ("1.txt", "2.txt"):
        (folder / "lists" / name).write_text("../a.png\n")
    with pytest.raises(SourceError, match="more than one of the manifests"):
        list_shards(str(folder / "lists"), InputSettings(kind="manifest"))
    (folder / "lists" / "2.txt").write_text("../b.png\n")
    images = read_all(folder / "lists", InputSettings(kind="manifest"))
    assert outcome(images) == {"../a.png": b"a.png", "../b.png": b"b.png"}
