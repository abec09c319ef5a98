"""A remembered sha256 counts only for the file it was made of."""

from __future__ import annotations

import hashlib
import os
import time

import pytest

from data_engine.errors import CheckpointError
from data_engine.sam import digests
from data_engine.sam.digests import sha256_of_cached

CONTENT, OTHER = b"weights" * 1000, b"Weights" * 1000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


def written(path, content=CONTENT, age_s=60.0):
    path.write_bytes(content)
    os.utime(path, (time.time() - age_s,) * 2)
    return path


@pytest.fixture
def hashed(monkeypatch):
    """The files that were read to be hashed."""
    paths, real = [], digests.sha256_of
    monkeypatch.setattr(digests, "sha256_of", lambda path: paths.append(path) or real(path))
    return paths


def test_a_file_is_hashed_once(tmp_path, hashed):
    path = written(tmp_path / "x")
    assert [sha256_of_cached(path) for _ in range(3)] == [SHA256] * 3
    assert len(hashed) == 1


def test_a_file_written_just_now_is_not_noted(tmp_path, hashed):
    """Within a step of the file system's clock it could change and keep its time."""
    path = written(tmp_path / "x", age_s=0)
    assert [sha256_of_cached(path) for _ in range(2)] == [SHA256] * 2
    assert len(hashed) == 2


@pytest.mark.parametrize("how", ["written over", "replaced"])
def test_a_change_that_keeps_size_and_time_is_noticed(tmp_path, how):
    path = written(tmp_path / "x")
    sha256_of_cached(path)
    times = (path.stat().st_atime_ns, path.stat().st_mtime_ns)
    if how == "replaced":
        written(tmp_path / "y", OTHER).replace(path)
    else:
        path.write_bytes(OTHER)
    os.utime(path, ns=times)
    with pytest.raises(CheckpointError, match=SHA256):
        sha256_of_cached(path)


def test_a_file_that_was_only_touched_is_hashed_again(tmp_path, hashed):
    path = written(tmp_path / "x")
    sha256_of_cached(path)
    written(path)
    assert [sha256_of_cached(path) for _ in range(2)] == [SHA256] * 2
    assert len(hashed) == 2


@pytest.mark.parametrize("note", [b"", b"{", b"[]", b'{"sha256": 1, "file": []}', b"\xff" * 9, b'{"sha256": "0"}'])
def test_a_damaged_note_is_no_note(tmp_path, note):
    path = written(tmp_path / "x")
    (tmp_path / "x.sha256").write_bytes(note)
    assert sha256_of_cached(path) == SHA256


def test_a_note_of_another_user_is_not_believed(tmp_path, monkeypatch, hashed):
    path = written(tmp_path / "x")
    sha256_of_cached(path)
    uid = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: uid + 1)
    assert sha256_of_cached(path) == SHA256
    assert len(hashed) == 2
