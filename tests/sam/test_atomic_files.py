"""Exported files are whole or absent, and replace nothing by accident."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from data_engine.errors import StorageError, UsageError
from data_engine.sam.atomic_files import put_file, put_folder


def writes(text):
    def write(path: Path) -> None:
        path.write_text(text)

    return write


def breaks(path: Path) -> None:
    path.write_text("half")
    raise OSError(28, "No space left on device")


def content(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


def test_a_file_in_folders_that_are_made(tmp_path):
    put_file(tmp_path / "a" / "b" / "x", writes("1"))
    assert content(tmp_path / "a" / "b") == {"x": "1"}


def test_another_file_is_replaced_only_when_asked(tmp_path):
    path = tmp_path / "x"
    path.write_text("theirs")
    with pytest.raises(UsageError, match=r"x exists and holds something else.*--overwrite"):
        put_file(path, writes("ours"))
    assert content(tmp_path) == {"x": "theirs"}
    put_file(path, writes("ours"), overwrite=True)
    assert content(tmp_path) == {"x": "ours"}


def test_the_same_file_is_left_alone(tmp_path):
    put_file(tmp_path / "x", writes("1"))
    before = (tmp_path / "x").stat()
    put_file(tmp_path / "x", writes("1"))
    after = (tmp_path / "x").stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("overwrite", [True, False])
def test_what_breaks_half_way_leaves_nothing(overwrite, tmp_path):
    (tmp_path / "x").write_text("theirs")
    with pytest.raises(StorageError, match=r"No space left on device\): free some space \([\d,]+ bytes"):
        put_file(tmp_path / "x", breaks, overwrite=overwrite)
    with pytest.raises(StorageError, match="No space"):
        put_folder(tmp_path / "new", {"a": writes("1"), "b": breaks}, overwrite=overwrite)
    assert content(tmp_path) == {"x": "theirs"}


def test_a_folder_that_is_there_keeps_its_other_files(tmp_path):
    folder = tmp_path / "model"
    for _ in range(2):  # the second time, everything is there
        put_folder(folder, {"a": writes("1"), "b": writes("2")})
    (folder / "README").write_text("mine")
    (folder / "b").unlink()
    put_folder(folder, {"a": writes("1"), "b": writes("3")})
    assert content(folder) == {"a": "1", "b": "3", "README": "mine"}
    assert len(list(tmp_path.iterdir())) == 1


def test_a_conflict_in_one_file_changes_no_other(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "b").write_text("theirs")
    with pytest.raises(UsageError, match="b exists"):
        put_folder(folder, {"a": writes("1"), "b": writes("2")})
    assert content(folder) == {"b": "theirs"}
    put_folder(folder, {"a": writes("1"), "b": writes("2")}, overwrite=True)
    assert content(folder) == {"a": "1", "b": "2"}


def test_of_several_writers_at_once_one_wins_whole(tmp_path):
    def attempt(number: int) -> bool:
        try:
            put_folder(tmp_path / "folder", {"a": writes(str(number)), "b": writes(str(number))})
            put_file(tmp_path / "file", writes(str(number)))
        except UsageError:
            return False
        return True

    with ThreadPoolExecutor(8) as threads:
        done = list(threads.map(attempt, range(8)))
    assert sum(done) == 1
    winner = str(done.index(True))
    assert content(tmp_path / "folder") == {"a": winner, "b": winner}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


def test_names_that_are_taken_by_another_kind(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("theirs")
    for overwrite in (True, False):
        with pytest.raises(StorageError, match="folder cannot be written"):
            put_file(tmp_path / "folder", writes("1"), overwrite=overwrite)
        with pytest.raises(StorageError, match="file cannot be written"):
            put_folder(tmp_path / "file", {"a": writes("1")}, overwrite=overwrite)
        with pytest.raises(StorageError, match=r"x cannot be written .*file is a file.*another destination"):
            put_file(tmp_path / "file" / "x", writes("1"), overwrite=overwrite)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]
    assert (tmp_path / "file").read_text() == "theirs"


FULL = """
import resource, sys, torch
from pathlib import Path
from data_engine.errors import StorageError
from data_engine.sam.checkpoint_export import write_checkpoint
from data_engine.sam.checkpoints import read_checkpoint
stored = read_checkpoint("starter")
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
for name, layout in (("x.pth", "segment-anything"), ("x.safetensors", "segment-anything"), ("x", "transformers")):
    try:
        write_checkpoint(stored.architecture, stored.state, Path(sys.argv[1]) / name, layout)
    except StorageError as error:
        print(error)
"""


def test_a_file_system_that_takes_no_more(tmp_path):
    """Every container's writer says so in one line, and leaves no half of a file."""
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path)], capture_output=True, text=True, check=True, env={**os.environ}
    )
    lines = done.stdout.splitlines()
    assert len(lines) == 3, done.stdout + done.stderr
    assert all("cannot be written (File too large" in line for line in lines)
    assert list(tmp_path.iterdir()) == []
