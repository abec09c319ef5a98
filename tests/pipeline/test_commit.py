"""Put-if-absent and whole objects, on the local file system and on a real S3 server."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from integration.fault_proxy import FaultProxy

from data_engine.errors import StorageError
from data_engine.pipeline import commit
from data_engine.pipeline.commit import check_store, put, put_if_absent
from data_engine.retry import Patience
from data_engine.storage import filesystem, join, list_names, read_bytes


class Clock:
    """Time that passes only while somebody sleeps."""

    def __init__(self):
        self.now, self.pauses = 0.0, []

    def sleep(self, seconds):
        self.now += seconds
        self.pauses.append(seconds)

    def patience(self, seconds=120.0):
        return Patience(seconds=seconds, clock=lambda: self.now, sleep=self.sleep)


@pytest.fixture
def clock():
    return Clock()


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


@pytest.fixture(params=["local", "s3"])
def fair_root(request, tmp_path, monkeypatch):
    """As `root`, but the S3 server decides races: moto alone lets two win now and then."""
    if request.param == "local":
        yield str(tmp_path)
        return
    import s3fs

    bucket = request.getfixturevalue("bucket")
    with FaultProxy(os.environ["AWS_ENDPOINT_URL"]) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        s3fs.S3FileSystem.clear_instance_cache()
        yield bucket


def test_of_sixteen_at_once_one_wins(fair_root):
    root = fair_root
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


def answers(code, status=412):
    """A store's answer as s3fs hands it on: an OSError whose cause is botocore's."""
    from botocore.exceptions import ClientError

    response = {"Error": {"Code": code, "Message": "no"}, "ResponseMetadata": {"HTTPStatusCode": status}}
    error = OSError(errno.EINVAL if status < 500 else errno.EBUSY, "no")
    error.__cause__ = ClientError(response, "PutObject")
    return error


@pytest.fixture
def refusing(bucket, monkeypatch):
    """Makes writing raise the errors of a list, then work."""
    import s3fs

    real, errors = s3fs.S3FileSystem.pipe_file, []

    def pipe_file(self, *args, **kwargs):
        if errors:
            raise errors.pop(0)
        return real(self, *args, **kwargs)

    monkeypatch.setattr(s3fs.S3FileSystem, "pipe_file", pipe_file)
    s3fs.S3FileSystem.clear_instance_cache()
    return errors


@pytest.mark.parametrize(
    "error",
    [
        FileExistsError(),
        OSError(errno.EINVAL, "PreconditionFailed"),
        answers("PreconditionFailed"),  # Ceph RGW: the message says nothing
        answers("412"),
    ],
)
def test_how_stores_say_that_a_name_is_taken(bucket, refusing, clock, error):
    put(join(bucket, "x"), b"theirs")
    refusing.append(error)
    assert not put_if_absent(join(bucket, "x"), b"mine", patience=clock.patience())
    assert clock.pauses == []


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EBUSY, "503 Slow Down"),
        OSError(errno.EIO, "SlowDown"),
        answers("ConditionalRequestConflict", 409),
        answers("InternalError", 500),
        answers("RequestTimeout", 400),
        TimeoutError(),
        ConnectionRefusedError(errno.ECONNREFUSED, "refused"),
    ],
)
def test_what_passes_is_tried_again_with_growing_pauses(bucket, refusing, clock, error):
    refusing += [error] * 4
    assert put_if_absent(join(bucket, "x"), b"mine", patience=clock.patience())
    assert read_bytes(join(bucket, "x")) == b"mine"
    assert len(clock.pauses) == 4
    assert 0.25 <= clock.pauses[0] <= 0.75
    assert clock.pauses[3] >= 2.0


def test_patience_ends_after_two_minutes_in_one_line_that_says_so(bucket, refusing, clock):
    refusing += [OSError(errno.EIO, "SlowDown")] * 1000
    with pytest.raises(StorageError, match=r"SlowDown; tried \d+ times in 1[12]\d s.*same command") as caught:
        put_if_absent(join(bucket, "x"), b"mine", patience=clock.patience())
    assert "\n" not in str(caught.value)
    assert 110 <= clock.now <= 121
    assert 8 <= len(clock.pauses) <= 30


@pytest.mark.parametrize(
    "error", [PermissionError("Access Denied"), answers("AccessDenied", 403), answers("InvalidArgument", 400)]
)
def test_what_lasts_is_not_tried_again(bucket, refusing, clock, error):
    refusing.append(error)
    with pytest.raises(StorageError, match=bucket):
        put_if_absent(join(bucket, "x"), b"mine", patience=clock.patience())
    assert clock.pauses == []


def test_an_access_error_says_what_to_check(bucket, refusing):
    refusing.append(PermissionError("Access Denied"))
    with pytest.raises(StorageError, match=r"s3://.*/x: access denied .*permissions.*AWS_ACCESS_KEY_ID"):
        put(join(bucket, "x"), b"data")


@pytest.mark.parametrize("single_writer", [False, True])
def test_a_write_that_worked_though_it_raised_is_known_as_ours(bucket, monkeypatch, clock, single_writer):
    import s3fs

    real, calls = s3fs.S3FileSystem.pipe_file, []

    def lost_answer(self, *args, **kwargs):
        calls.append(1)
        real(self, *args, **kwargs)
        if len(calls) == 1:
            raise ConnectionResetError(errno.ECONNRESET, "reset")

    monkeypatch.setattr(s3fs.S3FileSystem, "pipe_file", lost_answer)
    assert put_if_absent(join(bucket, "x"), b"mine", single_writer, clock.patience())
    assert not put_if_absent(join(bucket, "x"), b"theirs", single_writer, clock.patience())


def test_reading_waits_too_and_an_empty_answer_is_no_content(bucket, monkeypatch, clock):
    put(join(bucket, "f/x"), b"data")
    fs, _ = filesystem(bucket)
    slow_down = OSError(errno.EBUSY, "SlowDown")
    monkeypatch.setattr(fs, "cat_file", after([slow_down, b""], fs.cat_file))
    monkeypatch.setattr(fs, "ls", after([slow_down], fs.ls))
    assert read_bytes(join(bucket, "f/x"), clock.patience()) == b"data"
    assert len(clock.pauses) == 2
    assert list_names(join(bucket, "f"), clock.patience()) == ["x"]
    assert len(clock.pauses) == 3


def after(faults, real):
    def call(*args, **kwargs):
        if not faults:
            return real(*args, **kwargs)
        fault = faults.pop(0)
        if isinstance(fault, OSError):
            raise fault
        return fault

    return call


def test_a_bucket_that_is_not_there_is_named(bucket):
    with pytest.raises(StorageError, match="s3://no-such-bucket-at-all/x: no such bucket"):
        put("s3://no-such-bucket-at-all/x", b"data")


def test_missing_credentials_are_one_clear_line(s3_endpoint, monkeypatch, tmp_path, clock):
    import s3fs

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_endpoint)
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(StorageError) as caught:
        put("s3://bucket/x", b"data", clock.patience())
    assert clock.pauses == []
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


@pytest.mark.parametrize("refusal", [errno.EPERM, errno.ENOSYS])
def test_without_hard_links_a_write_that_fails_leaves_no_half_record(tmp_path, monkeypatch, refusal):
    """It would be the record that counts, and never be whole."""

    def no_links(*args):
        raise OSError(refusal, "no links")

    synced = []

    def full_at_last(descriptor):
        synced.append(descriptor)
        if len(synced) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "link", no_links)
    monkeypatch.setattr(os, "fsync", full_at_last)
    with pytest.raises(StorageError, match="no space left"):
        put_if_absent(str(tmp_path / "x"), b"data")
    assert list(tmp_path.iterdir()) == []
    assert put_if_absent(str(tmp_path / "x"), b"again")


@pytest.mark.parametrize("refusal", [errno.EINVAL, errno.ENOTSUP])
def test_file_systems_that_cannot_sync_a_folder(tmp_path, monkeypatch, refusal):
    """As some network mounts."""
    real = os.fsync

    def files_only(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(refusal, "not of folders")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", files_only)
    put(str(tmp_path / "part"), b"data")
    assert put_if_absent(str(tmp_path / "record"), b"data")


def test_a_folder_that_could_not_be_synced_is_an_error(tmp_path, monkeypatch):
    def broken(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(StorageError, match="Input/output error"):
        put(str(tmp_path / "part"), b"data")
