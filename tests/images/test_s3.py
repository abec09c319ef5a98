"""Inputs in S3, against a real server."""

import time
from dataclasses import replace

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from encoded import outcome, png, read_all, tar

from data_engine.errors import SourceError, StorageError
from data_engine.images import retry
from data_engine.images.settings import InputSettings
from data_engine.images.shard import ShardDamaged
from data_engine.images.sources import check_unchanged, list_shards, read_shard
from data_engine.retry import ONCE, Patience
from data_engine.storage import filesystem

SETTINGS = InputSettings()
KEY = "odd/spaces and 'quotes', ünïcödé 🦊 #?%2F+&.png"


def put(bucket: str, files: dict[str, bytes]) -> None:
    fs = fsspec.filesystem("s3", use_listings_cache=False)
    for name, data in files.items():
        fs.pipe_file(f"{bucket}/{name}", data)


def test_folder(bucket: str) -> None:
    files = {"a.png": png(1), "sub/b.JPG": png(2), KEY: png(3), "n" * 200 + ".png": png(4)}
    put(
        bucket,
        {f"in/{name}": data for name, data in files.items()} | {"in/x.txt": b"x", "in/.h.png": b"", "other.png": b""},
    )
    put(bucket, {"in/marker/": b""})
    for uri in (f"{bucket}/in", f"{bucket}/in/"):
        listing = list_shards(uri, SETTINGS)
        assert (listing.kind, listing.images) == ("files", 4)
        assert outcome(read_all(uri)) == files
    assert all(file.size and file.etag for file in listing.shards[0].files)
    assert list(outcome(read_all(f"{bucket}/in/*.png"))) == ["a.png", "n" * 200 + ".png"]
    assert list(outcome(read_all(f"{bucket}/in/a.png"))) == ["a.png"]
    assert list(outcome(read_all(f"{bucket}/in/{{sub/b.JPG,a.png}}"))) == ["a.png", "sub/b.JPG"]
    assert list(outcome(read_all(bucket, InputSettings(recursive=False)))) == ["other.png"]


def test_a_folder_is_listed_page_by_page_and_one_that_fails_is_asked_for_again(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A listing of millions takes many minutes: what fails at its end must not begin it anew, or end the job."""
    names = [f"{folder}{number} é+%20.png" for folder in ("", "sub/", "sub/sub/") for number in range(4)]
    put(bucket, {f"photos/{name}": png(1) for name in names})
    monkeypatch.setattr("data_engine.images.listing._S3_PAGE", 2)
    monkeypatch.setattr(retry, "STORE", Patience(seconds=0.2, first_pause=0.01))
    fs, _ = filesystem(bucket)
    real, pages = fs.call_s3, []

    def call(method: str, **asked: object) -> object:
        pages.append(asked.get("ContinuationToken"))
        time.sleep(0.1)
        if len(pages) in (4, 6):
            raise OSError(16, "SlowDown")
        return real(method, **asked)

    monkeypatch.setattr(fs, "call_s3", call)
    (shard,) = list_shards(f"{bucket}/photos", SETTINGS).shards
    assert [file.image_id for file in shard.files] == sorted(names)
    assert all(file.size == len(png(1)) and file.etag and '"' not in file.etag for file in shard.files)
    assert len(pages) == 6 + 2
    pages.clear()
    (shard,) = list_shards(f"{bucket}/photos", replace(SETTINGS, recursive=False)).shards
    assert [file.image_id for file in shard.files] == names[:4]


def test_changes_after_the_listing(bucket: str) -> None:
    put(bucket, {"a.png": png(1), "b.png": png(2), "c.png": png(3)})
    (shard,) = list_shards(bucket, SETTINGS).shards
    fsspec.filesystem("s3").rm(f"{bucket}/a.png")
    put(bucket, {"b.png": b"short"})
    assert outcome(read_shard(shard, SETTINGS)) == {"a.png": "unreadable", "b.png": "unreadable", "c.png": png(3)}


def test_tar(bucket: str) -> None:
    data = tar([(f"{i}.jpg", bytes([i]) * 900_000) for i in range(30)])
    put(bucket, {"t/000.tar": data, "t/001.tar": tar([("x.jpg", b"1")])})
    listing = list_shards(f"{bucket}/t/{{000..001}}.tar", SETTINGS)
    assert [shard.prefix for shard in listing.shards] == ["000.tar", "001.tar"]
    shard = listing.shards[0]
    assert shard.size == len(data)
    check_unchanged(shard)
    images = list(read_shard(shard, SETTINGS))
    assert outcome(images) == {f"000.tar/{i}.jpg": bytes([i]) * 900_000 for i in range(30)}
    assert list(read_shard(shard, SETTINGS, start=20, offset=images[19].next_offset)) == images[20:]
    put(bucket, {"t/000.tar": data + bytes(512)})
    for reading in (lambda: check_unchanged(shard), lambda: list(read_shard(shard, SETTINGS))):
        with pytest.raises(ShardDamaged) as caught:
            reading()
        assert caught.value.reason == "changed"
    put(bucket, {"t/cut.tar": data[:1_000_000]})
    with pytest.raises(ShardDamaged) as caught:
        read_all(f"{bucket}/t/cut.tar")
    assert (caught.value.reason, caught.value.last_key) == ("truncated_tar", "cut.tar/0.jpg")


def test_parquet_and_manifests(bucket: str) -> None:
    put(bucket, {"a.png": png(1), "m.txt": f"a.png\n{bucket}/a.png\nno.png\n/etc/hostname".encode()})
    assert [image.data or image.error.type for image in read_all(f"{bucket}/m.txt")] == [
        png(1),
        png(1),
        "unreadable",
        "unreadable",
    ]
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"image": [png(1), None]}), sink)
    put(bucket, {"p/x.parquet": sink.getvalue().to_pybytes()})
    assert outcome(read_all(f"{bucket}/p")) == {"x.parquet/0": png(1), "x.parquet/1": "null"}


def test_what_a_manifest_names_may_be_empty_or_too_large_or_gone(bucket: str) -> None:
    put(bucket, {"e.png": b"", "max.png": bytes(5000), "large.png": bytes(5001)})
    names = ("e", "max", "large", "gone")
    put(bucket, {"m/list.txt": "\n".join(f"{bucket}/{name}.png" for name in names).encode()})
    images = outcome(read_all(f"{bucket}/m/list.txt", InputSettings(max_image_bytes=5000)))
    assert [images[f"{bucket}/{name}.png"] for name in names] == ["empty", bytes(5000), "too_large", "unreadable"]


def test_names_that_no_object_can_have_are_failed_images_and_cost_no_other(bucket: str) -> None:
    put(bucket, {"a.png": png(1)})
    names = [bucket, "s3:///a.png", "s3://No Bucket!/a.png", f"{bucket}/a.png"]
    put(bucket, {"m/list.txt": "\n".join(names).encode()})
    images = outcome(read_all(f"{bucket}/m/list.txt"))
    assert [images[name] for name in names] == ["unreadable", "unreadable", "unreadable", png(1)]


def test_a_manifest_may_name_versions_of_objects(bucket: str) -> None:
    fs, path = filesystem(bucket)
    fs.call_s3("put_bucket_versioning", Bucket=path, VersioningConfiguration={"Status": "Enabled"})
    put(bucket, {"a.png": png(1), "e.png": b""})
    first = fs.call_s3("head_object", Bucket=path, Key="a.png")["VersionId"]
    empty = fs.call_s3("head_object", Bucket=path, Key="e.png")["VersionId"]
    put(bucket, {"a.png": png(2), "e.png": png(3)})
    names = [f"{bucket}/a.png?versionId={first}", f"{bucket}/a.png", f"{bucket}/e.png?versionId={empty}"]
    put(bucket, {"m/list.txt": "\n".join(names).encode()})
    images = outcome(read_all(f"{bucket}/m/list.txt"))
    assert [images[name] for name in names] == [png(1), png(2), "empty"]


def test_what_a_store_refuses_is_told_in_its_own_words(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that says 400 for a range, and not 416, does not speak of an empty object."""
    from botocore.exceptions import ClientError

    put(bucket, {"a.png": png(1), "m/list.txt": b"../a.png"})
    (shard,) = list_shards(f"{bucket}/m/list.txt", SETTINGS).shards
    fs, _ = filesystem(bucket)

    def refuses(path: str, **_: object) -> bytes:
        said = {"Error": {"Code": "InvalidToken"}, "ResponseMetadata": {"HTTPStatusCode": 400}}
        raise OSError(22, "The provided token is malformed") from ClientError(said, "GetObject")

    monkeypatch.setattr(fs, "cat_file", refuses)
    with pytest.raises(StorageError, match="The provided token is malformed"):
        list(read_shard(shard, SETTINGS))


def test_nothing_there(bucket: str) -> None:
    for uri in (f"{bucket}/none", f"{bucket}/none/", "s3://no-such-bucket-at-all/x", f"{bucket}/*.png"):
        with pytest.raises(SourceError):
            list_shards(uri, SETTINGS)


def test_a_store_that_is_down_fails_the_shard_and_not_its_images(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    put(bucket, {"a.png": png(1)})
    (shard,) = list_shards(bucket, SETTINGS).shards
    monkeypatch.setattr(retry, "STORE", ONCE)
    fs, _ = filesystem(bucket)

    def down(path: str, **_: object) -> bytes:
        raise OSError(16, "SlowDown")

    monkeypatch.setattr(fs, "cat_file", down)
    with pytest.raises(StorageError, match="SlowDown"):
        list(read_shard(shard, SETTINGS))
    calls = []

    def recovers(path: str, **_: object) -> bytes:
        calls.append(path)
        if len(calls) < 3:
            raise OSError(16, "SlowDown")
        return png(1)

    monkeypatch.setattr(fs, "cat_file", recovers)
    monkeypatch.setattr(retry, "STORE", Patience(seconds=5, first_pause=0.01))
    assert outcome(read_shard(shard, SETTINGS)) == {"a.png": png(1)}


def test_credentials_that_expire_fail_the_shard_and_a_denied_key_its_image(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from botocore.exceptions import ClientError

    put(bucket, {"a.png": png(1)})
    (shard,) = list_shards(bucket, SETTINGS).shards
    fs, _ = filesystem(bucket)

    def refusing(code: str) -> None:
        def cat_file(path: str, **_: object) -> bytes:
            cause = ClientError({"Error": {"Code": code, "Message": "no"}}, "GetObject")
            raise PermissionError("no") from cause

        monkeypatch.setattr(fs, "cat_file", cat_file)

    refusing("AccessDenied")
    assert outcome(read_shard(shard, SETTINGS)) == {"a.png": "unreadable"}
    refusing("ExpiredToken")
    with pytest.raises(StorageError, match="access denied"):
        list(read_shard(shard, SETTINGS))


def test_rights_that_are_lost_on_the_way_fail_the_shard_and_no_image(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(bucket, {f"{number:02d}.png": png(1) for number in range(24)})
    (shard,) = list_shards(bucket, SETTINGS).shards
    fs, _ = filesystem(bucket)
    real, denied = fs.cat_file, set()

    def cat_file(path: str, **options: object) -> bytes:
        if path.rsplit("/", 1)[-1] in denied:
            raise PermissionError("no")
        return real(path, **options)

    monkeypatch.setattr(fs, "cat_file", cat_file)
    denied.update({"00.png", "05.png"})
    found = outcome(read_shard(shard, SETTINGS))
    assert list(found) == [f"{number:02d}.png" for number in range(24)]
    assert {name for name, what in found.items() if what == "unreadable"} == denied

    read = []

    def read_on() -> None:
        for image in read_shard(shard, SETTINGS):
            read.append(image)
            if image.image_id == "08.png":
                denied.update(f"{number:02d}.png" for number in range(24))

    with pytest.raises(StorageError, match="access denied, and to the images before it"):
        read_on()
    assert len(read) < 24
    assert {image.image_id for image in read if image.error} == {"00.png", "05.png"}
    with pytest.raises(StorageError, match="access denied"):  # from the beginning
        list(read_shard(shard, SETTINGS))
