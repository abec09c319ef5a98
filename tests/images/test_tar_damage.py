"""Damaged, hostile and huge tars: nothing is lost in silence, and nothing is held that need not be."""

import gzip
import io
import pickle
import resource
import tarfile
import time
from pathlib import Path

import pytest
from encoded import png, tar
from tars import SETTINGS, THREE, assert_resumable, header, names_and_data, read, write

from data_engine.errors import SourceError
from data_engine.images.shard import ShardDamaged
from data_engine.images.sources import list_shards, read_shard


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT])
def test_cut_anywhere(tmp_path: Path, format: int) -> None:
    """The standard library would end without an error for most of these."""
    members = [(f"ü{name}", data) for name, data in THREE] if format == tarfile.PAX_FORMAT else THREE
    data = tar(members, format=format)
    whole, _ = read(write(tmp_path, data))
    end = len(data.rstrip(b"\0"))
    end = -(-end // 512) * 512
    for length in [*range(0, end, 37), end, end + 1, end + 512, end + 1023]:
        images, damage = read(write(tmp_path, data[:length]))
        assert damage is not None
        assert damage.reason == "truncated_tar"
        assert damage.offset is not None
        assert damage.offset <= length
        assert images == whole[: len(images)]
        assert damage.last_key == (images[-1].image_id if images else None)
        ends = [image.next_offset - -(-len(image.data) // 512) * 512 + len(image.data) for image in whole]
        assert len(images) == sum(1 for at in ends if at <= length)
        assert str(damage.offset // 1000) in str(damage)
    for length in (end + 1024, end + 1500, len(data)):
        assert read(write(tmp_path, data[:length]))[1] is None


def test_every_damaged_header_is_noticed(tmp_path: Path) -> None:
    data = tar(THREE, format=tarfile.USTAR_FORMAT)
    whole, _ = read(write(tmp_path, data))
    headers = [0, 512 + 1024, 512 + 1024 + 1024, 512 + 1024 + 1024 + 1024]
    for at in headers:
        for byte in range(0, 512, 11):
            broken = bytearray(data)
            broken[at + byte] ^= 0x15
            images, damage = read(write(tmp_path, bytes(broken)))
            if 148 <= byte < 156 and damage is None:  # spelling of the checksum itself
                assert images == whole
                continue
            assert damage is not None
            assert damage.reason == "corrupt_tar"
            assert damage.offset == at
            assert images == whole[: len(images)]
        zeroed = data[:at] + bytes(512) + data[at + 512 :]
        assert read(write(tmp_path, zeroed))[1].reason == "corrupt_tar"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "truncated_tar"),
        (bytes(512), "truncated_tar"),
        (b"<html>" * 200, "corrupt_tar"),
        (tar(THREE) + tar(THREE), "corrupt_tar"),
        (tar(THREE) + b"x", "corrupt_tar"),
        (header(b"a.jpg", b"\xff" * 12) + bytes(2048), "corrupt_tar"),
        (header(b"a.jpg", b"\x80" + b"\xff" * 11) + bytes(2048), "truncated_tar"),
        (header(b"a.jpg", b"zzzzzzzzzzz\0") + bytes(2048), "corrupt_tar"),
        (header(b"L", b"%011o\0" % (50 << 20), b"L") + bytes(2048), "corrupt_tar"),
        (header(b"x", b"%011o\0" % (50 << 20), b"x") + bytes(2048), "corrupt_tar"),
        (header(b"x", b"%011o\0" % 20, b"x") + b"99 path=a\n".ljust(512, b"\0") + bytes(2048), "corrupt_tar"),
        (header(b"x", b"%011o\0" % 20, b"x") + b"no records at all".ljust(512, b"\0") + bytes(2048), "corrupt_tar"),
        (header(b"x", b"%011o\0" % 9, b"x") + b"9 size=-1\n".ljust(512, b"\0") + bytes(2048), "corrupt_tar"),
        (header(b"x", b"%011o\0" % 9, b"x") + b"9 =value\n".ljust(512, b"\0") + bytes(2048), "corrupt_tar"),
        (header(b"x", b"%011o\0" % 5013, b"x") + b"5013 size=" + b"9" * 5002 + b"\n" + bytes(4000), "corrupt_tar"),
        (header(b"x", b"%011o\0" % 600, b"x") + bytes(512), "truncated_tar"),
    ],
)
def test_what_is_no_whole_tar(tmp_path: Path, data: bytes, reason: str) -> None:
    _, damage = read(write(tmp_path, data))
    assert damage is not None
    assert damage.reason == reason
    assert isinstance(damage, SourceError)


def test_a_header_of_a_million_bytes_is_read_at_once(tmp_path: Path) -> None:
    records = b"6 a=b\n" * 170_000
    size = len(records)
    data = header(b"x", b"%011o\0" % size, b"x") + records + bytes(-size % 512) + tar([("a.jpg", b"1")])
    begun = time.perf_counter()
    images, damage = read(write(tmp_path, data))
    assert time.perf_counter() - begun < 5
    assert (names_and_data(images), damage) == ([("a.tar/a.jpg", b"1")], None)


def test_many_long_names_in_a_row_are_refused(tmp_path: Path) -> None:
    chain = (header(b"L", b"%011o\0" % 512, b"L") + b"n" * 512) * 3000
    _, damage = read(write(tmp_path, chain + tar(THREE)))
    assert damage is not None
    assert damage.reason == "corrupt_tar"


@pytest.mark.parametrize("name", ["a.tar.gz", "a.tgz", "a.tar"])
def test_gzipped(tmp_path: Path, name: str) -> None:
    data = gzip.compress(tar(THREE))
    shard = write(tmp_path, data, name)
    assert shard.kind == "tar"
    assert_resumable(shard, offsets=False)
    for length in range(20, len(data), 5):
        images, damage = read(write(tmp_path, data[:length], name))
        assert damage is not None
        assert damage.reason == "truncated_tar"
        assert len(images) <= 3
    broken = bytearray(data)
    broken[30:40] = b"\xff" * 10
    assert read(write(tmp_path, bytes(broken), name))[1].reason in ("corrupt_tar", "truncated_tar")


def peak_memory() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def test_members_of_gigabytes_are_neither_read_nor_held(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    huge = 6 << 30
    with path.open("wb") as file:
        for name in (b"huge.jpg", b"huge.bin"):
            file.write(header(name, b"%011o\0" % huge))
            file.seek(huge, io.SEEK_CUR)
        file.write(tar([("ok.jpg", b"ok")]))
    before = peak_memory()
    images, damage = read(list_shards(str(path), SETTINGS).shards[0])
    assert damage is None
    assert names_and_data(images) == [("a.tar/huge.jpg", "too_large"), ("a.tar/ok.jpg", b"ok")]
    assert peak_memory() - before < 64 << 20


def test_gzip_bombs_are_not_held(tmp_path: Path) -> None:
    packed = io.BytesIO()
    with gzip.GzipFile(fileobj=packed, mode="wb", compresslevel=1) as stream:
        stream.write(header(b"huge.jpg", b"%011o\0" % (300 << 20)))
        for _ in range(300):
            stream.write(bytes(1 << 20))
        stream.write(tar([("ok.jpg", b"ok")]))
    shard = write(tmp_path, packed.getvalue(), "a.tar.gz")
    before = peak_memory()
    images, _ = read(shard)
    assert names_and_data(images) == [("a.tar.gz/huge.jpg", "too_large"), ("a.tar.gz/ok.jpg", b"ok")]
    assert peak_memory() - before < 64 << 20


def test_a_changed_tar_is_not_read(tmp_path: Path) -> None:
    shard = write(tmp_path, tar(THREE))
    write(tmp_path, tar([*THREE, ("3.jpg", b"d" * 20_000)]))
    images, damage = read(shard)
    assert (images, damage.reason) == ([], "changed")


def test_a_tar_that_changes_while_it_is_read(tmp_path: Path) -> None:
    shard = write(tmp_path, tar([("0.jpg", png()), *THREE]))
    reading = read_shard(shard, SETTINGS)
    next(reading)
    write(tmp_path, tar([("0.jpg", png()), *THREE]) + bytes(512))
    with pytest.raises(ShardDamaged) as caught:
        list(reading)
    assert caught.value.reason == "changed"


def test_damage_can_be_pickled() -> None:
    damage = pickle.loads(pickle.dumps(ShardDamaged("why", "truncated_tar", 512, "a.tar/1.jpg")))
    assert (str(damage), damage.reason, damage.offset, damage.last_key) == ("why", "truncated_tar", 512, "a.tar/1.jpg")
