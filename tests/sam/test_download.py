"""download() against a real HTTP server that can be told to misbehave."""

from __future__ import annotations

import hashlib
import os
import signal
import socket
import subprocess
import sys
import time

import pytest
from sam.web_server import CONTENT, SHA256, running_server

from data_engine.errors import CheckpointError
from data_engine.sam import checkpoints
from data_engine.sam.digests import sha256_of
from data_engine.sam.download import download


@pytest.fixture
def server():
    with running_server() as server:
        yield server


@pytest.fixture
def target(tmp_path):
    return tmp_path / "cache" / "weights.pth"


def fetch(server, target, **changes):
    download(server.url, target, **({"sha256": SHA256, "size": len(CONTENT), "backoff_s": 0.0} | changes))


def arrived(target):
    """What is left in the folder, but for the lock and the note of the digest."""
    return sorted(path.name for path in target.parent.iterdir() if path.suffix not in (".lock", ".sha256"))


def test_fetches_once(server, target):
    fetch(server, target)
    fetch(server, target)
    assert target.read_bytes() == CONTENT
    assert arrived(target) == [target.name]
    assert server.asked == [None]


@pytest.mark.parametrize("fault", ["cut", "chunked"])
def test_a_cut_connection_is_resumed_where_it_broke(server, target, fault):
    server.faults = [fault, "cut"]
    fetch(server, target)
    assert target.read_bytes() == CONTENT
    first, *rest = server.asked
    assert first is None
    assert len(rest) == 2
    if fault == "cut":
        half = len(CONTENT) // 2
        assert rest == [f"bytes={half}-", f"bytes={half + (len(CONTENT) - half) // 2}-"]


def test_a_server_without_ranges_starts_over(server, target):
    server.ranges = False
    server.faults = ["cut"]
    fetch(server, target)
    assert target.read_bytes() == CONTENT


@pytest.mark.parametrize("fault", ["500", "503", "429", "408", "garbage"])
def test_passing_failures_are_tried_again(server, target, fault):
    server.faults = [fault, fault]
    fetch(server, target)
    assert target.read_bytes() == CONTENT
    assert len(server.asked) == 3


@pytest.mark.parametrize("fault", ["503", "429"])
def test_a_busy_server_is_given_more_time(server, target, fault):
    server.faults = [fault] * 9
    fetch(server, target)
    assert target.read_bytes() == CONTENT


def test_a_missing_file_is_an_error_at_once(server, target):
    server.faults = ["404"]
    with pytest.raises(CheckpointError, match=r"weights\.pth.*404"):
        fetch(server, target)
    assert len(server.asked) == 1


def test_gives_up_keeping_what_arrived(server, target):
    server.faults = ["cut", "500", "garbage", "500", "408"]
    with pytest.raises(CheckpointError, match="run again") as caught:
        fetch(server, target)
    assert server.url in str(caught.value)
    assert str(target) in str(caught.value)
    assert arrived(target) == ["weights.pth.partial"]
    server.asked.clear()
    fetch(server, target)
    assert target.read_bytes() == CONTENT
    assert server.asked == [f"bytes={len(CONTENT) // 2}-"]


def test_no_server(target):
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # a port that nobody listens on
        with pytest.raises(CheckpointError, match="refused"):
            download(f"http://127.0.0.1:{nobody.getsockname()[1]}/x", target, sha256=SHA256, size=10, backoff_s=0)


def test_wrong_content_is_removed(server, target):
    server.content = CONTENT[:-1] + b"!"
    with pytest.raises(CheckpointError, match=f"expected {SHA256}") as caught:
        fetch(server, target)
    assert hashlib.sha256(server.content).hexdigest() in str(caught.value)
    assert arrived(target) == []
    server.content = CONTENT
    fetch(server, target)
    assert target.read_bytes() == CONTENT


@pytest.mark.parametrize("left", [0, len(CONTENT), len(CONTENT) + 5], ids=["nothing", "all", "too much"])
def test_whatever_an_earlier_run_left(server, target, left):
    target.parent.mkdir()
    target.with_name("weights.pth.partial").write_bytes((CONTENT + b"xxxxx")[:left])
    fetch(server, target)
    assert target.read_bytes() == CONTENT
    assert len(server.asked) == (0 if left == len(CONTENT) else 1)


@pytest.mark.parametrize("length", [1000, len(CONTENT) + 1000], ids=["shorter", "longer"])
def test_a_file_of_another_size_never_appears(server, target, length):
    server.content = (CONTENT * 2)[:length]
    with pytest.raises(CheckpointError, match=r"weights\.pth"):
        fetch(server, target)
    assert not target.exists()


def test_a_folder_that_cannot_be_made(server, tmp_path):
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(CheckpointError, match="DATA_ENGINE_CACHE"):
        fetch(server, tmp_path / "cache" / "weights.pth")


def child(server, target):
    code = (
        "import sys; from pathlib import Path; from data_engine.sam.download import download;"
        "download(sys.argv[1], Path(sys.argv[2]), sha256=sys.argv[3], size=int(sys.argv[4]), backoff_s=0)"
    )
    return subprocess.Popen([sys.executable, "-c", code, server.url, str(target), SHA256, str(len(CONTENT))])


def wait_until(condition):
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_two_processes_fetch_once(server, target):
    server.faults = ["stall"]
    children = [child(server, target) for _ in range(2)]
    wait_until(lambda: server.asked)
    time.sleep(0.3)  # long enough for the second to ask, if it did
    assert len(server.asked) == 1
    assert not target.exists()
    server.release.set()
    assert [process.wait(30) for process in children] == [0, 0]
    assert target.read_bytes() == CONTENT
    assert server.asked == [None, f"bytes={len(CONTENT) // 2}-"]  # the stalled transfer was resumed, by either


def test_a_killed_process_leaves_neither_a_file_nor_a_lock(server, target):
    server.faults = ["stall"]
    process = child(server, target)
    partial = target.with_name("weights.pth.partial")
    wait_until(lambda: partial.exists() and partial.stat().st_size > 0)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not target.exists()
    have = partial.stat().st_size
    fetch(server, target)
    assert target.read_bytes() == CONTENT
    assert server.asked == [None, f"bytes={have}-"]


@pytest.fixture
def known(server, tmp_path, monkeypatch):
    """The registry with one model, on the test's server, and an empty cache."""
    monkeypatch.setenv(checkpoints.CACHE_VARIABLE, str(tmp_path / "here"))
    model = checkpoints.Checkpoint("net", "a model", "MIT", SHA256, len(CONTENT), url=server.url)
    monkeypatch.setattr(checkpoints, "registry", lambda: {"net": model})
    return model


def test_known_models_are_fetched_into_the_cache(server, known, tmp_path):
    assert checkpoints.identify("net") == SHA256
    assert server.asked == []  # identifying fetches nothing
    expected = ("net", tmp_path / "here" / "checkpoints" / "weights.pth", SHA256)
    assert checkpoints.resolve("net") == expected
    assert checkpoints.resolve("net") == expected
    assert server.asked == [None]


def test_a_cached_file_that_changed_is_refused(server, known):
    path = checkpoints.resolve("net")[1]
    damaged = bytearray(CONTENT)
    damaged[1_000_000] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(CheckpointError, match="Delete the file") as caught:
        checkpoints.resolve("net")
    assert str(path) in str(caught.value)
    path.unlink()
    assert sha256_of(checkpoints.resolve("net")[1]) == SHA256


def test_cache_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv(checkpoints.CACHE_VARIABLE, raising=False)
    assert checkpoints.cache_dir() == tmp_path / ".cache" / "data-engine"
    monkeypatch.setenv(checkpoints.CACHE_VARIABLE, "~/models")
    assert checkpoints.cache_dir() == tmp_path / "models"


def test_registry():
    for name, model in checkpoints.registry().items():
        assert model.name == name
        assert (model.url is None) != (model.file is None)
    released = {name: model for name, model in checkpoints.registry().items() if model.url}
    assert set(released) == {"sam_vit_b", "sam_vit_l", "sam_vit_h"}
    for model in released.values():
        assert model.url.startswith("https://")
        assert len(model.sha256) == 64
