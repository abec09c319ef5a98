"""Put-if-absent and whole objects, on the local file system and on a real S3 server."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from data_engine.errors import StorageError
from data_engine.pipeline import commit
from data_engine.pipeline.commit import check_store, put, put_if_absent
from data_engine.storage import join, list_names, read_bytes


@pytest.fixture(params=["local", "s3"])
def root(request, tmp_path):
    return str(tmp_path) if request.param == "local" else request.getfixturevalue("bucket")


def test_put_writes_a_whole_object_into_a_folder_that_is_not_there(root):
    put(join(root, "a/b/c"), b"data")
    assert read_bytes(join(root, "a/b/c")) == b"data"
    assert list_names(join(root, "a/b")) == ["c"]  # nothing temporary is left


def test_the_first_put_wins_and_the_second_changes_nothing(root):
    assert put_if_absent(join(root, "x"), b"first")
    assert not put_if_absent(join(root, "x"), b"second")
    assert read_bytes(join(root, "x")) == b"first"


def test_a_writer_whose_answer_was_lost_knows_its_own_object(root):
    assert put_if_absent(join(root, "x"), b"mine")
    assert put_if_absent(join(root, "x"), b"mine")


def test_of_sixteen_at_once_one_wins(root):
    barrier = threading.Barrier(16)

    def race(i):
        barrier.wait()
        return put_if_absent(join(root, "x"), b"writer %d" % i)

    for attempt in range(3):
        with ThreadPoolExecutor(16) as pool:
            won = list(pool.map(race, range(16)))
        assert sum(won) == 1
        assert read_bytes(join(root, "x")) == b"writer %d" % won.index(True)
        commit.delete(join(root, "x"))
        assert attempt < 3


def test_check_store_leaves_nothing_behind(root):
    check_store(root)
    assert list_names(join(root, "_plan")) == []


def test_a_store_that_ignores_the_condition_is_refused(bucket, monkeypatch):
    monkeypatch.setattr(commit, "_remote_put", overwriting := Overwriting(commit._remote_put))
    with pytest.raises(StorageError, match=r"ignores conditional writes.*run\.single_writer=true"):
        check_store(bucket)
    check_store(bucket, single_writer=True)
    assert overwriting.used


class Overwriting:
    """As rclone's S3 server: takes the condition and overwrites."""

    def __init__(self, real):
        self.real, self.used = real, False

    def __call__(self, uri, data, mode):
        self.used = True
        return self.real(uri, data, "overwrite")


@pytest.mark.parametrize(
    ("error", "taken"),
    [
        (FileExistsError(), True),
        (OSError(errno.EINVAL, "PreconditionFailed"), True),  # Ceph RGW
        (OSError(errno.EIO, "SlowDown"), False),
    ],
)
def test_how_stores_say_that_a_name_is_taken(bucket, monkeypatch, error, taken):
    import s3fs

    def refuse(*args, **kwargs):
        raise error

    put(join(bucket, "x"), b"theirs")
    monkeypatch.setattr(s3fs.S3FileSystem, "pipe_file", refuse)
    s3fs.S3FileSystem.clear_instance_cache()
    monkeypatch.setattr(commit.time, "sleep", lambda s: None)
    if taken:
        assert not put_if_absent(join(bucket, "x"), b"mine")
    else:
        with pytest.raises(StorageError, match="SlowDown"):
            put_if_absent(join(bucket, "x"), b"mine")


def test_transient_failures_are_tried_again(bucket, monkeypatch):
    import s3fs

    real, calls = s3fs.S3FileSystem.pipe_file, []

    def flaky(self, *args, **kwargs):
        calls.append(1)
        if len(calls) < 4:
            raise OSError(errno.EBUSY, "503 Slow Down")
        return real(self, *args, **kwargs)

    monkeypatch.setattr(s3fs.S3FileSystem, "pipe_file", flaky)
    monkeypatch.setattr(commit.time, "sleep", lambda s: None)
    assert put_if_absent(join(bucket, "x"), b"mine")
    assert len(calls) == 4


def test_missing_credentials_are_one_clear_line(s3_endpoint, monkeypatch, tmp_path):
    import s3fs

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_endpoint)
    monkeypatch.setattr(commit.time, "sleep", lambda s: None)
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(StorageError) as caught:
        put("s3://bucket/x", b"data")
    assert "\n" not in str(caught.value)
    assert "redential" in str(caught.value)


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match="its folder is a file"):
        put(str(tmp_path / "file" / "x"), b"data")


def test_a_full_disk_is_named_and_leaves_no_half_object(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match=r"no space left.*run the same command again"):
        put_if_absent(str(tmp_path / "x"), b"data")
    assert list(tmp_path.iterdir()) == []


def test_file_systems_without_hard_links(tmp_path, monkeypatch):
    def no_links(*args):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    assert put_if_absent(str(tmp_path / "x"), b"first")
    assert not put_if_absent(str(tmp_path / "x"), b"second")


def test_a_process_killed_before_the_link_leaves_no_record(tmp_path):
    script = (
        "import os, sys\nfrom data_engine.pipeline import commit\n"
        "os.link = lambda *a: os._exit(9)\ncommit.put_if_absent(sys.argv[1], b'data')"
    )
    target = tmp_path / "x"
    assert subprocess.run([sys.executable, "-c", script, str(target)], check=False).returncode == 9
    assert not target.exists()
    assert put_if_absent(str(target), b"mine")
