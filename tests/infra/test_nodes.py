"""infra/nodes: what a node does before it goes. The drain is tried on a real Ray cluster."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from infra_files import INFRA

NODES = INFRA / "nodes"
sys.path.insert(0, str(NODES))

import processes  # noqa: E402
import stop_driver  # noqa: E402
import watch_spot  # noqa: E402


def test_the_node_id_is_read_from_the_raylet(tmp_path: Path) -> None:
    for pid, command in {
        "11": ["/ray/core/src/ray/raylet/raylet", "--node_id=abc", "--head"],
        "12": ["python", "raylet", "--node_id=no"],
        "13": [],
    }.items():
        (tmp_path / pid).mkdir()
        (tmp_path / pid / "cmdline").write_bytes(b"".join(part.encode() + b"\0" for part in command))
    (tmp_path / "14").mkdir()  # it has ended meanwhile
    (tmp_path / "self").mkdir()
    assert processes.raylet_node_ids(tmp_path) == ["abc"]


@pytest.mark.parametrize(
    ("command", "driver"),
    [
        (["/opt/venv/bin/python", "/opt/data-engine/jobs/generate.py", "in", "out"], True),
        (["python3", "-u", "jobs/generate.py", "in", "out"], True),
        (["python", "generate.py", "in", "out"], True),  # with --working-dir jobs
        (["python", "loop.py", "in", "out"], True),
        (["/opt/venv/bin/python", "/opt/venv/bin/data-engine", "loop", "in", "out"], True),
        (["/opt/venv/bin/python", "/opt/venv/bin/data-engine", "generate", "in", "out"], True),
        (["/bin/bash", "-c", "python jobs/generate.py in out"], False),
        (["/opt/venv/bin/python", "/opt/venv/bin/data-engine", "status", "out"], False),
        (["/opt/venv/bin/python", "/opt/venv/bin/ray", "job", "submit", "--", "python", "jobs/generate.py"], False),
        ([], False),
    ],
)
def test_only_drivers_are_stopped(command: list[str], driver: bool) -> None:
    assert stop_driver.is_driver(command) is driver


def test_the_driver_is_stopped_and_waited_for(tmp_path: Path) -> None:
    """In a process namespace of its own: on this machine other drivers may run."""
    if subprocess.run(["unshare", "-rpf", "--mount-proc", "true"], check=False, capture_output=True).returncode:
        pytest.skip("no process namespaces here")
    (tmp_path / "jobs").mkdir()
    job = tmp_path / "jobs" / "generate.py"
    job.write_text(
        "import pathlib, signal, sys, time\n"
        "def stop(*_):\n"
        "    time.sleep(0.7); pathlib.Path(sys.argv[1]).write_text('committed'); sys.exit(130)\n"
        "signal.signal(signal.SIGTERM, stop)\n"
        "pathlib.Path(sys.argv[1]).write_text('runs')\n"
        "time.sleep(60)\n"
    )
    mark, script = tmp_path / "mark", NODES / "stop_driver.py"
    steps = (
        f"{sys.executable} {job} {mark} & until [ -e {mark} ]; do sleep 0.1; done; {sys.executable} {script}; wait $!"
    )
    done = subprocess.run(
        ["unshare", "-rpf", "--mount-proc", "bash", "-c", steps],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert mark.read_text() == "committed"
    assert "1 drivers stopped" in done.stderr
    assert done.returncode == 130


class Metadata(BaseHTTPRequestHandler):
    """EC2's instance metadata, version 2: a token first, then answers."""

    notice: str | None = None

    def do_PUT(self) -> None:  # the name that http.server calls
        self._answer(200, "secret")

    def do_GET(self) -> None:
        if self.headers["X-aws-ec2-metadata-token"] != "secret":
            self._answer(401, "")
        elif self.notice is None:
            self._answer(404, "")
        else:
            self._answer(200, self.notice)

    def _answer(self, status: int, body: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def metadata() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), Metadata)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_spot_notice_is_seen(metadata: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert watch_spot.interruption(metadata) is None
    monkeypatch.setattr(Metadata, "notice", '{"action": "terminate", "time": "2026-01-01T00:00:00Z"}')
    assert "terminate" in str(watch_spot.interruption(metadata))


def test_the_watch_drains_and_ends(metadata: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    drain = tmp_path / "drain_node.py"
    drain.write_text(
        "import pathlib, sys\npathlib.Path(__file__).with_name('seen').write_text(' '.join(sys.argv[1:]))\n"
    )
    monkeypatch.setattr(Metadata, "notice", '{"action": "terminate"}')
    monkeypatch.setattr(watch_spot, "DRAIN", drain)
    monkeypatch.setattr(sys, "argv", ["watch_spot.py", "--metadata", metadata, "--deadline", "90"])
    assert watch_spot.main() == 0
    assert (tmp_path / "seen").read_text() == "--deadline 90 --reason spot notice"


def test_draining_ends_an_idle_node_of_a_real_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`ray drain-node` is hidden and may change with any version of Ray: this notices."""
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        node = cluster.add_node(num_cpus=1)
        command = [
            sys.executable,
            str(NODES / "drain_node.py"),
            "--address",
            cluster.address,
            "--node-id",
            node.node_id,
        ]
        started = time.monotonic()
        done = subprocess.run(
            [*command, "--deadline", "60"],
            check=False,
            capture_output=True,
            text=True,
            env=dict(os.environ),
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        assert "is drained" in done.stderr, done.stderr
        assert time.monotonic() - started < 60
    finally:
        ray.shutdown()
        cluster.shutdown()


def test_a_refused_drain_is_an_error() -> None:
    script = [sys.executable, str(NODES / "drain_node.py"), "--node-id", "00ff", "--address", "127.0.0.1:1"]
    done = subprocess.run([*script, "--deadline", "5"], check=False, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "did not accept" in done.stderr
