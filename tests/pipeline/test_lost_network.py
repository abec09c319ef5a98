"""Images on web servers, and a network that goes away: they wait. One server of many that is gone is not waited for."""

from __future__ import annotations

import io
import socket
import struct
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from pipeline.test_lost_mount import after_images
from pipeline.tiny_job import config_for, rows, write_photos
from rich.console import Console

from data_engine.errors import StorageError
from data_engine.images import retry
from data_engine.masks.generator import MaskGenerator
from data_engine.pipeline import local_outage
from data_engine.pipeline.job import generate
from data_engine.pipeline.policy import Policy
from data_engine.pipeline.progress import Progress
from data_engine.retry import Patience

pytest.importorskip("aiohttp")
SETTINGS = (
    "input.allow_private_hosts=true",
    "input.images_per_shard=4",
    "input.fetch_threads=1",
    "output.images_per_commit=2",
    "run.prefetch_images=1",
)


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_outage, "POLICY", Policy(store_pause=0.05, store_longest_pause=0.1, store_patience=1.0))
    monkeypatch.setattr(retry, "HTTP", Patience(seconds=1.2, first_pause=0.1, longest_pause=0.1))


class Web:
    """A folder on a web server that can be taken off the network, and put back under its address."""

    def __init__(self, folder: Path) -> None:
        class Handler(SimpleHTTPRequestHandler):
            def __init__(self, *args: object) -> None:
                super().__init__(*args, directory=str(folder))  # type: ignore[arg-type]

            def log_message(self, *_: object) -> None:
                pass

        self._handler, self._port = Handler, 0
        self.up()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def up(self) -> None:
        self._server = ThreadingHTTPServer(("127.0.0.1", self._port), self._handler)
        self._server.daemon_threads = True
        self._port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def down(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def web(tmp_path: Path) -> Iterator[Web]:
    server = Web(write_photos(tmp_path / "photos", 12))
    yield server
    server.down()


@pytest.fixture
def rude() -> Iterator[str]:
    """A server that resets every connection."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def reset() -> None:
            while True:
                try:
                    connection, _ = listening.accept()
                except OSError:
                    return
                connection.recv(1 << 16)
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                connection.close()

        threading.Thread(target=reset, daemon=True).start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


def write_manifest(folder: Path, *addresses: str) -> str:
    (folder / "list.txt").write_text("".join(f"{address}\n" for address in addresses))
    return str(folder / "list.txt")


def photos_of(web: Web) -> list[str]:
    return [f"{web.url}/{number:03d}.jpg" for number in range(12)]


def test_one_that_comes_back_is_waited_for(tiny_model, tmp_path, monkeypatch, web):
    manifest, config = write_manifest(tmp_path, *photos_of(web)), config_for(tiny_model, *SETTINGS)
    generate(manifest, str(tmp_path / "whole"), config)
    said, note = io.StringIO(), Progress.note

    def noted(self: Progress, text: str) -> None:
        note(self, text)
        if "waiting for the input" in text:
            web.up()

    monkeypatch.setattr(MaskGenerator, "run", after_images(5, web.down))
    monkeypatch.setattr(Progress, "note", noted)
    report = generate(manifest, str(tmp_path / "out"), config, progress=Progress(Console(file=said, width=300)))
    assert (report.exit_code, report.totals.failed, report.failed_shards) == (0, 0, [])
    assert "no web server that answered before does so now" in said.getvalue()
    assert "it is there again" in said.getvalue()
    assert rows(tmp_path / "out") == rows(tmp_path / "whole")


def test_one_that_stays_away_ends_the_job_and_makes_no_failed_rows(tiny_model, tmp_path, monkeypatch, web):
    manifest, config = write_manifest(tmp_path, *photos_of(web)), config_for(tiny_model, *SETTINGS)
    monkeypatch.setattr(MaskGenerator, "run", after_images(5, web.down))
    with pytest.raises(StorageError, match="no web server that answered before does so now"):
        generate(manifest, str(tmp_path / "out"), config)
    monkeypatch.undo()
    assert 0 < len(rows(tmp_path / "out")[0]) < 12
    assert all(row["status"] == "ok" for row in rows(tmp_path / "out")[0])
    web.up()
    report = generate(manifest, str(tmp_path / "out"), config)
    assert (report.exit_code, report.totals.images) == (0, 12)


def test_a_server_that_is_gone_or_resets_connections_costs_its_own_images(tiny_model, tmp_path, web, rude):
    with socket.create_server(("127.0.0.1", 0)) as free:
        gone = f"http://127.0.0.1:{free.getsockname()[1]}"
    photos = photos_of(web)
    manifest = write_manifest(tmp_path, *photos[:6], f"{gone}/a.jpg", f"{rude}/b.jpg", *photos[6:])
    report = generate(manifest, str(tmp_path / "out"), config_for(tiny_model, *SETTINGS))
    assert (report.exit_code, report.failed_shards, report.totals.images) == (3, [], 14)
    assert report.totals.errors == {"unreadable": 2}


def test_servers_that_never_answered_are_not_waited_for(tiny_model, tmp_path, web, rude):
    manifest = write_manifest(tmp_path, f"{rude}/a.jpg", f"{rude}/b.jpg")
    report = generate(manifest, str(tmp_path / "out"), config_for(tiny_model, *SETTINGS))
    assert (report.exit_code, report.totals.errors) == (3, {"unreadable": 2})
