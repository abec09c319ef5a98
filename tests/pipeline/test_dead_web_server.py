"""A web server that is down: its tars are failed shards of this run. Nobody waits an hour for it, as for a store."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from pipeline.tiny_job import config_for, write_tar
from rich.console import Console

from data_engine.images import retry
from data_engine.pipeline.job import generate
from data_engine.pipeline.progress import Progress
from data_engine.retry import Patience


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """Has a.tar and, though it lists it, not b.tar."""
    data = write_tar(tmp_path / "a.tar", 4).read_bytes()

    class Half(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()

        def do_GET(self) -> None:
            if "b.tar" in self.path:
                self.send_error(503)
                return
            self.do_HEAD()
            self.wfile.write(data)

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Half)
    httpd.daemon_threads = True
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{httpd.server_port}"
    httpd.shutdown()


def test_it_is_not_waited_for(tiny_model, tmp_path, server, monkeypatch):
    monkeypatch.setattr(retry, "HTTP", Patience(seconds=0.5))
    said = io.StringIO()
    report = generate(
        f"{server}/{{a,b}}.tar",
        str(tmp_path / "out"),
        config_for(tiny_model, "input.allow_private_hosts=true"),
        progress=Progress(Console(file=said, width=300)),
    )
    assert (report.exit_code, report.totals.images, len(report.failed_shards)) == (1, 4, 1)
    assert "b.tar" in report.failed_shards[0].message
    assert "waiting" not in said.getvalue()
