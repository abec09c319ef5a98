"""An input that goes away as a whole, as a network mount does: no image becomes a failed row for it."""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from pipeline.tiny_job import config_for, rows, write_photos, write_tar
from rich.console import Console

from data_engine.dataset.reader import MaskDataset
from data_engine.errors import StorageError
from data_engine.images.shard import EncodedImage, FileEntry, ImageError, Shard
from data_engine.masks.generator import MaskGenerator
from data_engine.pipeline import local_outage
from data_engine.pipeline.job import generate
from data_engine.pipeline.lost_folder import lost_folder
from data_engine.pipeline.policy import Policy
from data_engine.pipeline.progress import Progress

SETTINGS = ("output.images_per_commit=2", "input.images_per_shard=3", "input.fetch_threads=1", "run.prefetch_images=1")
KINDS = ["folder", "glob", "glob of folders", "manifest", "relative manifest", "tars"]


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    quick = Policy(store_pause=0.05, store_longest_pause=0.1, store_patience=0.5)
    monkeypatch.setattr(local_outage, "POLICY", quick)


def write_input(kind: str, folder: Path) -> tuple[str, Path]:
    """(INPUT, the folder that stands for a mount)."""
    mount = folder / "mnt" / "nas"
    if kind == "tars":
        for number in range(4):
            write_tar(mount / "tars" / f"{number}.tar", 2, first=2 * number)
        return str(mount / "tars" / "*.tar"), mount
    photos = write_photos(mount / "2024" / "photos", 7)
    if kind == "manifest":
        (folder / "list.txt").write_text("".join(f"{path}\n" for path in sorted(photos.iterdir())))
        return str(folder / "list.txt"), mount
    if kind == "relative manifest":
        (folder / "list.txt").write_text("".join(f"{path.relative_to(folder)}\n" for path in sorted(photos.iterdir())))
        return str(folder / "list.txt"), mount
    given = {"folder": photos, "glob": photos / "*.jpg", "glob of folders": folder / "mnt" / "*" / "20*" / "**/*.jpg"}
    return str(given[kind]), mount


def after_images(count: int, what: Callable[[], None]) -> Callable[..., object]:
    """A model that does it once, before it is at image `count`."""
    real, done = MaskGenerator.run, []

    def run(self: MaskGenerator, *args: object, **kwargs: object) -> object:
        done.append(1)
        if len(done) == count:
            what()
        return real(self, *args, **kwargs)  # type: ignore[arg-type]

    return run


def unmount(mount: Path, left: str) -> None:
    mount.rename(mount.parents[1] / "away")
    if left != "nothing":
        mount.mkdir()


def remount(mount: Path) -> None:
    if mount.exists():
        mount.rmdir()
    (mount.parents[1] / "away").rename(mount)


@pytest.mark.parametrize("left", ["an empty folder", "nothing"])
@pytest.mark.parametrize("kind", KINDS)
def test_one_that_stays_away_ends_the_job_and_makes_no_failed_rows(tiny_model, tmp_path, monkeypatch, kind, left):
    given, mount = write_input(kind, tmp_path)
    output, config = str(tmp_path / "out"), config_for(tiny_model, *SETTINGS)
    monkeypatch.setattr(MaskGenerator, "run", after_images(1, lambda: unmount(mount, left)))
    with pytest.raises(StorageError, match="mount it, and run the same command again"):
        generate(given, output, config)
    monkeypatch.undo()
    assert all(row["status"] == "ok" for row in rows(output)[0])
    assert 0 < len(rows(output)[0]) < 7
    again = generate(given, output, config)  # one that was not there from the beginning is not waited for
    assert (again.exit_code, again.totals.failed) == (1, 0)
    assert "mount it, and run the same command again" in again.failed_shards[0].message
    remount(mount)
    whole = generate(given, output, config)
    assert (whole.exit_code, whole.totals.images) == (0, 8 if kind == "tars" else 7)


@pytest.mark.parametrize("kind", ["glob", "manifest", "tars"])
def test_one_that_comes_back_is_waited_for(tiny_model, tmp_path, monkeypatch, kind):
    given, mount = write_input(kind, tmp_path)
    shutil.copytree(mount, tmp_path / "copy")
    said = io.StringIO()
    monkeypatch.setattr(MaskGenerator, "run", after_images(1, lambda: unmount(mount, "an empty folder")))
    note, waits = Progress.note, []

    def noted(self: Progress, text: str) -> None:
        note(self, text)
        if "waiting for the input" in text:
            waits.append(1)
            remount(mount)

    monkeypatch.setattr(Progress, "note", noted)
    report = generate(
        given,
        str(tmp_path / "out"),
        config_for(tiny_model, *SETTINGS),
        progress=Progress(Console(file=said, width=300)),
    )
    assert (report.exit_code, report.failed_shards, waits) == (0, [], [1])
    assert "it is there again" in said.getvalue()
    monkeypatch.undo()
    generate(given, str(tmp_path / "whole"), config_for(tiny_model, *SETTINGS))
    assert rows(tmp_path / "out") == rows(tmp_path / "whole")


def test_of_many_shards_that_cannot_be_read_some_are_named_and_all_are_counted(tiny_model, tmp_path):
    photos = write_photos(tmp_path / "photos", 40)
    config = config_for(tiny_model, "input.images_per_shard=1")
    generate(str(photos), str(tmp_path / "out"), config, limit=40)
    for file in [tmp_path / "out" / "_manifest.json", *(tmp_path / "out" / "_commits").iterdir()]:
        file.unlink()
    photos.rename(tmp_path / "elsewhere")
    said = io.StringIO()
    progress = Progress(Console(file=said, width=300))
    report = generate(str(photos), str(tmp_path / "out"), config, limit=40, progress=progress)
    assert (report.exit_code, len(report.failed_shards)) == (1, 40)
    lines = said.getvalue().splitlines()
    assert sum("mount it" in line for line in lines) == 40  # of the first twenty, when they fail and at the end
    assert sum("and 20 more" in line for line in lines) == 1


@pytest.mark.parametrize("kind", ["folder", "glob", "manifest"])
def test_images_that_are_deleted_are_failed_rows(tiny_model, tmp_path, kind):
    given, mount = write_input(kind, tmp_path)
    output, config = str(tmp_path / "out"), config_for(tiny_model, *SETTINGS)
    generate(given, output, config)
    for file in [tmp_path / "out" / "_manifest.json", *(tmp_path / "out" / "_commits").iterdir()]:
        file.unlink()
    for number in (1, 4, 6):
        (mount / "2024" / "photos" / f"00{number}.jpg").unlink()
    report = generate(given, output, config)
    assert (report.complete, report.totals.errors) == (True, {"unreadable": 3})
    assert MaskDataset(output)[next(r["image_id"] for r in rows(output)[0] if "004" in r["image_id"])].row["status"]


def missing(listed_in: Path, *files: Path) -> str | None:
    """What is found of the first of a shard's files, which cannot be read."""
    entries = tuple(FileEntry(str(file), str(file)) for file in files)
    shard = Shard(id="0" * 16, kind="files", uri=str(listed_in), images=len(entries), files=entries)
    image = EncodedImage(0, str(files[0]), str(files[0]), error=ImageError("unreadable", "not found"))
    return lost_folder(shard, image)


def test_which_folder_is_lost(tmp_path):
    a, b = tmp_path / "a", tmp_path / "b"
    a.mkdir()
    b.mkdir()
    (b / "there.jpg").touch()
    listed, manifest = tmp_path / "list.txt", tmp_path / "*.jpg"
    # of several disks, the empty one
    assert missing(listed, a / "1.jpg", a / "2.jpg", b / "there.jpg").startswith(f"{a}: ")
    assert missing(manifest, a / "x" / "1.jpg", a / "2.jpg", b / "there.jpg").startswith(f"{a}: ")
    # the only image of a folder, or a folder of some
    assert missing(listed, a / "1.jpg", b / "there.jpg") is None
    assert missing(listed, b / "gone" / "1.jpg", b / "gone" / "2.jpg", b / "there.jpg") is None
    # all that a manifest names in the shard; a folder that was listed has lost one that lay in it
    assert missing(listed, b / "gone" / "1.jpg", b / "gone" / "2.jpg").startswith(f"{b / 'gone'}: ")
    assert missing(b, b / "gone" / "1.jpg", b / "gone" / "2.jpg") is None
    assert missing(b / "*" / "*.jpg", b / "gone" / "1.jpg", b / "gone" / "2.jpg") is None
    # the way out where they are gone for good
    (a / "any file").touch()
    assert missing(listed, a / "1.jpg", a / "2.jpg") is None


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.EKEYEXPIRED])
def test_a_folder_that_cannot_be_looked_into_is_lost_wherever_it_lies(tmp_path, monkeypatch, number):
    """As a network mount says whose server is away, or whose ticket has expired."""
    (tmp_path / "photos" / "mount").mkdir(parents=True)
    file, real = tmp_path / "photos" / "mount" / "1.jpg", os.scandir

    def scandir(path):
        if "mount" in Path(path).name:
            raise OSError(number, os.strerror(number))
        return real(path)

    assert "it is empty" in missing(tmp_path / "photos", file)
    monkeypatch.setattr(os, "scandir", scandir)
    assert f"({os.strerror(number)})" in missing(tmp_path / "photos", file)
    assert f"({os.strerror(number)})" in missing(tmp_path / "list.txt", file, tmp_path / "2.jpg")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_rights_to_a_local_folder_that_are_lost_make_no_failed_rows(tiny_model, tmp_path, monkeypatch):
    given, mount = write_input("glob", tmp_path)
    monkeypatch.setattr(MaskGenerator, "run", after_images(1, lambda: (mount / "2024" / "photos").chmod(0)))
    try:
        with pytest.raises(StorageError, match="Permission denied"):
            generate(given, str(tmp_path / "out"), config_for(tiny_model, *SETTINGS))
    finally:
        (mount / "2024" / "photos").chmod(0o755)
    assert all(row["status"] == "ok" for row in rows(tmp_path / "out")[0])


@pytest.mark.parametrize(
    "name", ["x" * 300 + "/1.jpg", "a\0b/1.jpg", "there.jpg/1.jpg", "loop/1.jpg", "file://~nobody-at-all/1.jpg"]
)
def test_a_name_that_no_file_can_have_is_a_failed_row(tiny_model, tmp_path, name):
    photos = write_photos(tmp_path / "photos", 2)
    (photos / "there.jpg").touch()
    (photos / "loop").symlink_to(photos / "loop")
    entries = [photos / "000.jpg", name if "://" in name else photos / name, photos / "001.jpg"]
    (tmp_path / "list.jsonl").write_text("".join(json.dumps({"path": str(entry)}) + "\n" for entry in entries))
    report = generate(str(tmp_path / "list.jsonl"), str(tmp_path / "out"), config_for(tiny_model))
    assert (report.complete, report.totals.images, report.totals.errors) == (True, 3, {"unreadable": 1})
