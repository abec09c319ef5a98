"""One writer an output: a second command is refused before it writes, and a killed one leaves no lock behind."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from train.blobs import Blobs, settings_for

from data_engine.errors import StorageError
from data_engine.loop.run import run_loop
from data_engine.loop.settings import load_loop_settings
from data_engine.train.supervised.output_lock import FileLock, only_writer
from data_engine.train.supervised.ray_workers import train_on_ray
from data_engine.train.supervised.run import Sources, train

HOLDER = """
import sys
from pathlib import Path
from data_engine.train.supervised.output_lock import only_writer
with only_writer(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_lock_ends_with_its_process_however_that_ends(tmp_path: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(StorageError, match="another process is at work in it; wait for its end"), only_writer(tmp_path):
        pass
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with only_writer(tmp_path) as locked:
        assert locked


def test_a_second_training_writes_nothing(tmp_path: Path) -> None:
    with only_writer(tmp_path), pytest.raises(StorageError, match="another process is at work in it"):
        train(settings_for(), Sources(Blobs(2)), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]
    train(settings_for(train={"steps": 1}), Sources(Blobs(2)), tmp_path)


def test_a_second_training_on_a_cluster_starts_no_workers(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    with only_writer(tmp_path), pytest.raises(StorageError, match="another process is at work in it"):
        train_on_ray(settings_for(), "idmaps:nowhere", str(tmp_path), workers=2)


def test_a_second_loop_writes_nothing(tmp_path: Path) -> None:
    output = tmp_path / "loop"
    output.mkdir()
    (tmp_path / "labelled" / "segments").mkdir(parents=True)
    for path in (tmp_path / "labelled" / "0.jpg", tmp_path / "labelled" / "segments" / "0.png"):
        path.touch()
    settings = load_loop_settings(None, [f"evaluation.data={tmp_path}/labelled"])
    with only_writer(output), pytest.raises(StorageError, match="another process is at work in it"):
        run_loop(str(tmp_path / "photos"), str(output), settings)
    assert [path.name for path in output.iterdir()] == [".lock"]


def test_a_file_system_without_locks_is_used_and_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def acquire(self: FileLock, **_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(FileLock, "acquire", acquire)
    with only_writer(tmp_path) as locked:
        assert not locked
    assert "is on a file system without locks (No locks available)" in caplog.text
