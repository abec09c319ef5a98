"""Tars are read strictly: nothing is lost in silence, no header is trusted, and a resume sees the same images."""

import gzip
import io
import pickle
import resource
import tarfile
from pathlib import Path

import pytest
from encoded import png, tar
from hypothesis import given, settings
from hypothesis import strategies as st

from data_engine.errors import SourceError
from data_engine.images.settings import InputSettings
from data_engine.images.shard import EncodedImage, Shard, ShardDamaged
from data_engine.images.sources import list_shards, read_shard
from data_engine.images.webdataset import normalised

SETTINGS = InputSettings()
FORMATS = [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]


def write(folder: Path, data: bytes, name: str = "a.tar") -> Shard:
    (folder / name).write_bytes(data)
    (shard,) = list_shards(str(folder / name), SETTINGS).shards
    return shard


def read(
    shard: Shard, settings: InputSettings = SETTINGS, **how: object
) -> tuple[list[EncodedImage], ShardDamaged | None]:
    """Everything that comes out, and the damage that ends it."""
    images = []
    try:
        for image in read_shard(shard, settings, **how):
            images.append(image)
    except ShardDamaged as damage:
        return images, damage
    return images, None


def names_and_data(images: list[EncodedImage]) -> list[tuple[str, bytes | str | None]]:
    return [(image.image_id, image.error.type if image.error else image.data) for image in images]


def special(name: str, type: bytes, linkname: str = "", size: int = 0) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = type, linkname, size
    return info


@pytest.mark.parametrize("format", FORMATS)
def test_members_in_order(tmp_path: Path, format: int) -> None:
    long = "folder/" * 12 + "a name with spaces, 'quotes' and ünïcödé 🦊.JPG"
    members = [
        ("000.jpg", b"one"),
        ("000.json", b"{}"),
        ("000.cls", b"3"),
        ("./sub/001.png", b"two"),
        (long, b"x" * 513),
    ]
    images, damage = read(write(tmp_path, tar(members, format=format)))
    assert damage is None
    assert names_and_data(images) == [
        ("a.tar/000.jpg", b"one"),
        ("a.tar/sub/001.png", b"two"),
        (f"a.tar/{long}", b"x" * 513),
    ]
    assert [image.index for image in images] == [0, 1, 2]
    assert images[1].uri == f"{tmp_path}/a.tar#sub/001.png"


def test_names_of_a_kilobyte(tmp_path: Path) -> None:
    name = "n" * 1020 + ".jpg"
    for format in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        images, _ = read(write(tmp_path, tar([(name, b"1"), ("b.jpg", b"2")], format=format)))
        assert names_and_data(images) == [(f"a.tar/{name}", b"1"), ("a.tar/b.jpg", b"2")]


@pytest.mark.parametrize(
    ("name", "becomes"),
    [
        ("../../etc/x.jpg", "etc/x.jpg"),
        ("/abs/x.jpg", "abs/x.jpg"),
        ("//x.jpg", "x.jpg"),
        ("./a/./b//c/../x.jpg", "a/b/x.jpg"),
        ("a\\b.jpg", "a\\b.jpg"),
        ("a b%2Fc#?.jpg", "a b%2Fc#?.jpg"),
        ("new\nline.jpg", "new\nline.jpg"),
        ("nfd-u\u0308.jpg", "nfd-u\u0308.jpg"),
        (b"caf\xe9.jpg".decode("utf-8", "surrogateescape"), "caf\\xe9.jpg"),
        ("..", ""),
    ],
)
def test_names_are_harmless_valid_and_otherwise_kept(name: str, becomes: str) -> None:
    assert normalised(name) == becomes


@pytest.mark.parametrize("format", FORMATS)
def test_names_that_are_not_utf8(tmp_path: Path, format: int) -> None:
    name = b"caf\xe9.jpg".decode("utf-8", "surrogateescape")
    images, _ = read(write(tmp_path, tar([(name, b"1")], format=format)))
    assert images[0].image_id == "a.tar/caf\\xe9.jpg"
    assert images[0].image_id.encode()
    assert images[0].uri.encode()


def test_repeated_keys_are_numbered(tmp_path: Path) -> None:
    members = [("a.jpg", b"1"), ("a.jpg", b"2"), ("./a.jpg", b"3"), ("a.jpg#2", b"-"), ("b.jpg", b"4"), ("a.jpg", b"5")]
    images, _ = read(write(tmp_path, tar(members)))
    assert names_and_data(images) == [
        ("a.tar/a.jpg", b"1"),
        ("a.tar/a.jpg#2", b"2"),
        ("a.tar/a.jpg#3", b"3"),
        ("a.tar/b.jpg", b"4"),
        ("a.tar/a.jpg#4", b"5"),
    ]


def test_links_folders_devices_and_hidden_files_are_passed_over(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(special("d.jpg", tarfile.DIRTYPE))
        archive.addfile(special("s.jpg", tarfile.SYMTYPE, "/etc/passwd"))
        archive.addfile(special("h.jpg", tarfile.LNKTYPE, "x.jpg"))
        archive.addfile(special("c.jpg", tarfile.CHRTYPE))
        archive.addfile(special("p.jpg", tarfile.FIFOTYPE))
        archive.addfile(special("._x.jpg", tarfile.REGTYPE, size=2), io.BytesIO(b"mm"))
        archive.addfile(special("x.jpg", tarfile.CONTTYPE, size=2), io.BytesIO(b"ok"))
        archive.addfile(special("label.jpg", b"V", size=3), io.BytesIO(b"???"))
        archive.addfile(special("y.jpg", tarfile.REGTYPE, size=2), io.BytesIO(b"ok"))
    images, damage = read(write(tmp_path, buffer.getvalue()))
    assert damage is None
    assert names_and_data(images) == [("a.tar/x.jpg", b"ok"), ("a.tar/y.jpg", b"ok")]


def test_empty_large_and_sparse_members_are_failed_images(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(special("empty.jpg", tarfile.REGTYPE))
        archive.addfile(special("large.jpg", tarfile.REGTYPE, size=5000), io.BytesIO(b"x" * 5000))
        sparse = special("sparse.jpg", tarfile.REGTYPE, size=600)
        sparse.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "real.jpg"}
        archive.addfile(sparse, io.BytesIO(b"x" * 600))
        archive.addfile(special("ok.jpg", tarfile.REGTYPE, size=2), io.BytesIO(b"ok"))
    images, damage = read(write(tmp_path, buffer.getvalue()), InputSettings(max_image_bytes=4999))
    assert damage is None
    assert names_and_data(images) == [
        ("a.tar/empty.jpg", "empty"),
        ("a.tar/large.jpg", "too_large"),
        ("a.tar/real.jpg", "unsupported_format"),
        ("a.tar/ok.jpg", b"ok"),
    ]


def header(name: bytes, size: bytes, type: bytes = b"0", rest: bytes = b"") -> bytes:
    """A header block with a right checksum, whatever else is wrong with it."""
    block = bytearray(512)
    block[: len(name)] = name
    block[124 : 124 + len(size)] = size
    block[156:157] = type
    block[257:263] = b"ustar\0"
    block[345 : 345 + len(rest)] = rest
    block[148:156] = b"        "
    block[148:155] = b"%06o\0" % sum(block)
    return bytes(block)


def test_old_gnu_sparse_members(tmp_path: Path) -> None:
    first = bytearray(header(b"s.jpg", b"00000001000\0", b"S"))
    first[257:265] = b"ustar  \0"
    first[482] = 1  # its map goes on in another block
    first[148:156] = b"        "
    first[148:155] = b"%06o\0" % sum(first)
    data = bytes(first) + bytes(512) + b"x" * 512 + tar([("ok.jpg", b"ok")])
    images, damage = read(write(tmp_path, data))
    assert damage is None
    assert names_and_data(images) == [("a.tar/s.jpg", "unsupported_format"), ("a.tar/ok.jpg", b"ok")]


THREE = [("0.jpg", b"a" * 700), ("1.json", b"{}"), ("1.jpg", b"b" * 512), ("2.jpg", b"c" * 10)]


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
        (header(b"x", b"%011o\0" % 600, b"x") + bytes(512), "truncated_tar"),
    ],
)
def test_what_is_no_whole_tar(tmp_path: Path, data: bytes, reason: str) -> None:
    _, damage = read(write(tmp_path, data))
    assert damage is not None
    assert damage.reason == reason
    assert isinstance(damage, SourceError)


def test_many_long_names_in_a_row_are_refused(tmp_path: Path) -> None:
    chain = (header(b"L", b"%011o\0" % 512, b"L") + b"n" * 512) * 3000
    _, damage = read(write(tmp_path, chain + tar(THREE)))
    assert damage is not None
    assert damage.reason == "corrupt_tar"


def test_global_headers_are_ignored_so_that_a_resume_sees_the_same(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", pax_headers={"path": "wrong.jpg", "comment": "x"}) as archive:
        for name in ("a.jpg", "b.jpg"):
            archive.addfile(special(name, tarfile.REGTYPE, size=1), io.BytesIO(b"1"))
    images, _ = read(write(tmp_path, buffer.getvalue()))
    assert names_and_data(images) == [("a.tar/a.jpg", b"1"), ("a.tar/b.jpg", b"1")]


def test_an_empty_archive_has_no_images(tmp_path: Path) -> None:
    assert read(write(tmp_path, tar([]))) == ([], None)


def assert_resumable(shard: Shard, offsets: bool = True) -> None:
    whole, damage = read(shard)
    assert damage is None
    for start in range(len(whole) + 1):
        assert read(shard, start=start)[0] == whole[start:]
        if start:
            before = whole[start - 1]
            assert (before.next_offset is not None) == offsets
            seen = {image.image_id for image in whole[:start]}
            assert read(shard, start=start, offset=before.next_offset, seen_ids=seen)[0] == whole[start:]


@pytest.mark.parametrize("format", FORMATS)
def test_resume_at_every_image(tmp_path: Path, format: int) -> None:
    members = [(f"{'long/' * 20 * (i % 2)}{i % 3}.jpg", bytes([i]) * 300 * i) for i in range(12)]
    assert_resumable(write(tmp_path, tar(members, format=format)))


def test_resume_does_not_read_what_lies_before(tmp_path: Path) -> None:
    data = tar(THREE)
    shard = write(tmp_path, data)
    whole, _ = read(shard)
    (tmp_path / "a.tar").write_bytes(b"?" * 512 + data[512:])  # same size
    images = read_shard(
        Shard(id=shard.id, kind="tar", uri=shard.uri, prefix="a.tar"), SETTINGS, start=1, offset=whole[0].next_offset
    )
    assert list(images) == whole[1:]


NAMES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=150)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(NAMES, st.binary(max_size=1500)), max_size=8), st.sampled_from(FORMATS), st.booleans())
def test_round_trip(tmp_path_factory: pytest.TempPathFactory, members: list, format: int, zipped: bool) -> None:
    wanted = []
    storable = []
    for name, data in members:
        name += ".jpg"
        try:
            tarfile.TarInfo(name).tobuf(format, "utf-8", "strict")
        except ValueError:
            continue  # ustar cannot hold it
        storable.append((name, data))
        if SETTINGS.is_image(normalised(name)):
            wanted.append((f"a.tar/{normalised(name)}", data or "empty"))
    archive = tar(storable, format=format)
    folder = tmp_path_factory.mktemp("tar")
    shard = write(folder, gzip.compress(archive) if zipped else archive)
    images, damage = read(shard)
    assert damage is None
    assert [data for _, data in names_and_data(images)] == [data for _, data in wanted]
    assert len({image.image_id for image in images}) == len(images)
    for image, (name, _) in zip(images, wanted, strict=True):
        assert image.image_id == name or image.image_id.rpartition("#")[0] == name
    assert_resumable(shard, offsets=not zipped)


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


def test_closing_early(tmp_path: Path) -> None:
    reading = read_shard(write(tmp_path, tar(THREE)), SETTINGS)
    assert next(reading).index == 0
    reading.close()
    assert next(reading, None) is None


def test_damage_can_be_pickled() -> None:
    damage = pickle.loads(pickle.dumps(ShardDamaged("why", "truncated_tar", 512, "a.tar/1.jpg")))
    assert (str(damage), damage.reason, damage.offset, damage.last_key) == ("why", "truncated_tar", 512, "a.tar/1.jpg")
