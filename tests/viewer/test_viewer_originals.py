"""One original at a time, from every kind of input, and none that is not the one that was masked."""

from __future__ import annotations

import io
import tarfile
import threading
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from viewer.viewed import build, known_masks, pixels, served, write_photos

from data_engine.images.stream import InputFile
from data_engine.viewer.originals import Missing, Originals
from data_engine.viewer.run import ViewedRun


def one_mask(number, height, width):
    return known_masks(number, height, width)[2:3]


def write_tar(path: Path, photos: Path, mode: str = "w", format: int = tarfile.PAX_FORMAT) -> Path:
    """With a text beside every image, a folder, and names too long for a plain header."""
    with tarfile.open(path, mode, format=format) as tar:
        for file in sorted(photos.iterdir()):
            folder = tarfile.TarInfo("deep/" * 30)
            folder.type = tarfile.DIRTYPE
            tar.addfile(folder)
            for name, data in ((file.name, file.read_bytes()), (f"{file.stem}.json", b"{}")):
                member = tarfile.TarInfo("deep/" * 30 + name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return path


def write_parquet(path: Path, photos: Path) -> Path:
    images = [{"bytes": file.read_bytes(), "path": file.name} for file in sorted(photos.iterdir())]
    pq.write_table(pa.table({"image": images}), path, row_group_size=3)
    return path


def make_input(kind: str, folder: Path, photos: Path) -> str:
    if kind == "folder":
        return str(photos)
    if kind == "manifest":
        (folder / "list.txt").write_text("".join(f"{path}\n" for path in sorted(photos.iterdir())))
        return str(folder / "list.txt")
    if kind == "tar":
        return str(write_tar(folder / "a.tar", photos))
    if kind == "gnu":
        return str(write_tar(folder / "a.tar", photos, format=tarfile.GNU_FORMAT))
    if kind == "tar.gz":
        return str(write_tar(folder / "a.tar.gz", photos, "w:gz"))
    return str(write_parquet(folder / "a.parquet", photos))


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return write_photos(tmp_path_factory.mktemp("originals") / "photos", side=96)


@pytest.mark.parametrize("kind", ["folder", "manifest", "tar", "gnu", "tar.gz", "parquet"])
def test_every_original_is_found_alone_in_any_order(kind, photos, tmp_path):
    build(tmp_path / "out", make_input(kind, tmp_path, photos), one_mask, overrides=("input.images_per_shard=5",))
    files = [path.read_bytes() for path in sorted(photos.iterdir())]
    for order in (range(7), (5, 0, 6, 3)):
        run = ViewedRun(str(tmp_path / "out"))
        listed = run.index.read_all()
        names = sorted(range(len(listed)), key=lambda i: listed.ids[i].as_py())
        for i in order:
            assert run.picture(listed.ids[names[i]].as_py(), 0)[:2] == b"\xff\xd8"
            number, row = run.index.locate(names[i])
            assert run.originals.read(run.index.records, number, row, *_facts(run, number, row)) == files[i]


def _facts(run: ViewedRun, number: int, row: int) -> tuple[str, bytes]:
    """The URI and the sha256 of an image."""
    from data_engine.viewer.index import open_part

    with open_part(run.root, run.index.records[number].images) as file:
        (found,) = file.read(columns=["uri", "sha256"]).slice(row, 1).to_pylist()
    return found["uri"], found["sha256"]


@pytest.mark.parametrize("kind", ["tar", "tar.gz", "parquet"])
def test_originals_of_a_replay_of_a_part_of_the_images(kind, photos, tmp_path):
    """Its images have other numbers than in the tar or the Parquet file."""
    build(tmp_path / "out", make_input(kind, tmp_path, photos), one_mask, per_commit=3, kept=(1, 3, 6))
    files = [path.read_bytes() for path in sorted(photos.iterdir())]
    for order in (range(3), (2, 0, 1)):
        run = ViewedRun(str(tmp_path / "out"))
        for i in order:
            number, row = run.index.locate(i)
            found = run.originals.read(run.index.records, number, row, *_facts(run, number, row))
            assert found == files[(1, 3, 6)[i]]


def test_a_tar_is_entered_where_the_image_is(tmp_path, monkeypatch):
    """An image of a slice of 20 costs headers and itself, not what lies before it."""
    rng = np.random.default_rng(0)
    from PIL import Image

    (tmp_path / "photos").mkdir()
    for i in range(60):
        noise = Image.fromarray(rng.integers(0, 256, (120, 120, 3), dtype=np.uint8))
        noise.save(tmp_path / "photos" / f"{i:02d}.jpg", quality=100)
    tar = write_tar(tmp_path / "a.tar", tmp_path / "photos")
    build(tmp_path / "out", str(tar), one_mask, per_commit=20)
    read = []
    whole_read = InputFile.read

    def counted(self, size=-1):
        data = whole_read(self, size)
        read.append(len(data))
        return data

    monkeypatch.setattr(InputFile, "read", counted)
    run = ViewedRun(str(tmp_path / "out"))
    ids = run.index.read_all().ids.to_pylist()
    largest = max(path.stat().st_size for path in (tmp_path / "photos").iterdir())
    for position in (57, 23, 58):
        read.clear()
        assert not isinstance(run.picture(ids[position], 0), Missing)
        assert sum(read) < 5 * largest  # before 57 and 58 lie 17 and 18 in their slice


def test_originals_in_a_bucket(bucket, photos, tmp_path):
    import fsspec

    tar = write_tar(tmp_path / "a.tar", photos)
    fs = fsspec.filesystem("s3")
    fs.put(str(tar), f"{bucket}/tars/a.tar")
    fs.put(str(photos), f"{bucket}/photos", recursive=True)
    for name in ("tars/a.tar", "photos/"):
        out = tmp_path / name.replace("/", "-")
        build(out, f"{bucket}/{name}", one_mask)
        fs.put(str(out), f"{bucket}/{out.name}", recursive=True)
        run = ViewedRun(f"{bucket}/{out.name}")  # the dataset is there as well
        assert run.image(run.index.read_all().ids[0].as_py())["n_masks"] == 1
        for image_id in run.index.read_all().ids.to_pylist():
            if "broken" not in image_id:
                assert not isinstance(run.picture(image_id, 160), Missing)


def test_a_changed_or_missing_original_says_so(photos, tmp_path):
    import shutil

    shutil.copytree(photos, tmp_path / "photos")
    tar = write_tar(tmp_path / "a.tar", photos)
    build(tmp_path / "out", str(tmp_path / "photos"), one_mask)
    build(tmp_path / "from-tar", str(tar), one_mask)
    run = ViewedRun(str(tmp_path / "out"))
    first, second = sorted(path.name for path in photos.iterdir())[:2]
    (tmp_path / "photos" / first).unlink()
    other = (tmp_path / "photos" / second).read_bytes()
    (tmp_path / "photos" / second).write_bytes(other[:-1] + b"\x00")
    assert run.picture(first, 0) == Missing("not found")
    assert isinstance(run.picture(second, 0), Missing)
    tar.unlink()
    in_tar = ViewedRun(str(tmp_path / "from-tar"))
    assert isinstance(in_tar.picture(in_tar.index.read_all().ids[0].as_py(), 0), Missing)


@pytest.mark.parametrize("side", [0, 160])
def test_pictures_are_upright_and_no_larger_than_asked(photos, tmp_path, side):
    build(tmp_path / "out", str(photos), one_mask)
    run = ViewedRun(str(tmp_path / "out"))
    turned = pixels(run.picture("turned.jpg", side))
    assert turned.shape == (90, 60, 3)
    red, black = turned[10, 30].astype(int), turned[80, 30].astype(int)
    assert red[0] > 200 > 60 > black[0]  # the left half of what is stored is the upper one
    image = run.image("turned.jpg")
    assert (image["width"], image["height"]) == (60, 90)


def test_a_large_jpeg_is_reduced(tmp_path):
    from PIL import Image

    ramp = np.linspace(0, 255, 1600).astype(np.uint8)
    picture = np.stack(np.broadcast_arrays(ramp[None, :], ramp[:1200, None], np.uint8(90)), axis=-1)
    (tmp_path / "photos").mkdir()
    Image.fromarray(picture).save(tmp_path / "photos" / "a.jpg", quality=95)
    build(tmp_path / "out", str(tmp_path / "photos"), one_mask)
    small = pixels(ViewedRun(str(tmp_path / "out")).picture("a.jpg", 320))
    assert small.shape == (240, 320, 3)
    expected = np.asarray(Image.fromarray(picture).resize((320, 240), Image.Resampling.BOX))
    assert np.abs(small.astype(int) - expected).mean() < 3


def test_a_store_that_hangs_holds_up_no_other_picture(photos, tmp_path, monkeypatch):
    build(tmp_path / "out", str(photos), one_mask)
    run = ViewedRun(str(tmp_path / "out"))
    ids = [run.image_id(position) for position in range(2)]
    read, hang, hanging = Originals.read, threading.Event(), threading.Semaphore(0)

    def slow(self, records, number, row, uri, digest):
        if uri.endswith(ids[0]):
            hanging.release()
            hang.wait(20)
        return read(self, records, number, row, uri, digest)

    monkeypatch.setattr(Originals, "read", slow)
    with served(tmp_path / "out") as server, ThreadPoolExecutor(16) as pool:

        def picture(image_id):
            address = f"http://127.0.0.1:{server.port}/api/picture?side=160&id={quote(image_id)}"
            headers = {"Authorization": f"Bearer {server.token}"}
            with urllib.request.urlopen(urllib.request.Request(address, None, headers), timeout=10) as answer:
                return answer.read()

        waiting = [pool.submit(picture, ids[0]) for _ in range(16)]
        try:
            for _ in range(16):
                assert hanging.acquire(timeout=10)
            assert pixels(picture(ids[1])).ndim == 3
        finally:
            hang.set()
        assert {len(each.result()) for each in waiting} == {len(picture(ids[0]))}
