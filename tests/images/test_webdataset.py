"""Tars are read strictly: nothing is lost in silence, no header is trusted, and a resume sees the same images."""

import gzip
import io
import tarfile
from pathlib import Path

import pytest
from encoded import tar
from hypothesis import given, settings
from hypothesis import strategies as st
from tars import FORMATS, SETTINGS, THREE, assert_resumable, header, names_and_data, read, special, write

from data_engine.images.settings import InputSettings
from data_engine.images.shard import Shard
from data_engine.images.sources import read_shard
from data_engine.images.webdataset import normalised


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


def test_global_headers_are_ignored_so_that_a_resume_sees_the_same(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", pax_headers={"path": "wrong.jpg", "comment": "x"}) as archive:
        for name in ("a.jpg", "b.jpg"):
            archive.addfile(special(name, tarfile.REGTYPE, size=1), io.BytesIO(b"1"))
    images, _ = read(write(tmp_path, buffer.getvalue()))
    assert names_and_data(images) == [("a.tar/a.jpg", b"1"), ("a.tar/b.jpg", b"1")]


def test_an_empty_archive_has_no_images(tmp_path: Path) -> None:
    assert read(write(tmp_path, tar([]))) == ([], None)


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


def test_closing_early(tmp_path: Path) -> None:
    reading = read_shard(write(tmp_path, tar(THREE)), SETTINGS)
    assert next(reading).index == 0
    reading.close()
    assert next(reading, None) is None
