"""A source that stops sending in the middle of a tar: Ctrl-C still stops within seconds."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from pipeline.tiny_job import KEEP_ALL, save_model, write_tar


@pytest.fixture
def stalling(tmp_path: Path) -> Iterator[tuple[str, threading.Event]]:
    """URL of a tar of which only the beginning is ever sent, and what is set once somebody waits for the rest."""
    data = write_tar(tmp_path / "a.tar", 30).read_bytes()
    waiting, over = threading.Event(), threading.Event()

    class Stalling(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()

        def do_GET(self) -> None:
            self.do_HEAD()
            self.wfile.write(data[:4096])
            self.wfile.flush()
            waiting.set()
            over.wait(120)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Stalling)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/a.tar", waiting
    over.set()
    server.shutdown()


def test_ctrl_c_stops_within_seconds(stalling: tuple[str, threading.Event], tmp_path: Path) -> None:
    url, waiting = stalling
    model = save_model(tmp_path / "tiny.safetensors")
    command = [sys.executable, "-m", "data_engine.cli", "generate", url, str(tmp_path / "out"), "--config", "reference"]
    command += ["--model", str(model), "--set", "input.allow_private_hosts=true", "--set", "run.device=cpu"]
    command += [part for value in KEEP_ALL for part in ("--set", value)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        if "running on" in line:
            break
    assert waiting.wait(60)
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    begun = time.monotonic()
    _, errors = process.communicate(timeout=60)
    assert time.monotonic() - begun < 20
    assert process.returncode == 130, errors
    assert "the same command goes on" in errors
