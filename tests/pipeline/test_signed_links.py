"""Signed links: they open the input, a renewed one resumes the job, and none is found in any file or message."""

from __future__ import annotations

import http.server
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from pipeline.tiny_job import KEEP_ALL, config_for, picture, rows, write_tar

from data_engine.images.shard import FileEntry, Shard
from data_engine.pipeline.job import generate
from data_engine.pipeline.originals import relinked
from data_engine.pipeline.plan import PlannedShard, make_plan, new_inputs, read_plan, with_links, write_plan

pytest.importorskip("aiohttp")
PLANTED = "planted-in-the-link"


class Server(http.server.ThreadingHTTPServer):
    """Serves files to whoever has signed with `accepts`; tells everybody how long they are."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.accepts = ""

    def link(self, path: str, signature: str) -> str:
        """As AWS signs; ?id= is no part of the signature."""
        key, token, date = f"{PLANTED}-key", f"{PLANTED}-token", "20990101T000000Z"
        return (
            f"http://127.0.0.1:{self.server_port}/{path}?id=7&X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Date={date}"
            f"&X-Amz-Credential={key}%2F{signature}&X-Amz-Security-Token={token}&X-Amz-Expires=60"
            f"&X-Amz-Signature={PLANTED}-{signature}"
        )


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, body: bool) -> None:
        asked = urlsplit(self.path)
        given = parse_qs(asked.query)
        data = self.server.files.get(asked.path[1:])
        signed = given.get("X-Amz-Signature") == [f"{PLANTED}-{self.server.accepts}"] and given.get("id") == ["7"]
        status = 404 if data is None else 403 if body and not signed else 200
        data = data if data is not None and status == 200 else b""
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if body:
            self.wfile.write(data)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield server
        server.shutdown()


def written(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())


def test_a_link_is_in_no_file_and_no_message_and_a_renewed_one_resumes(server, tiny_model, tmp_path):
    server.files["a.tar"] = write_tar(tmp_path / "a.tar", 3, broken=(1,)).read_bytes()
    settings = [part for value in (*KEEP_ALL, "input.allow_private_hosts=true") for part in ("--set", value)]
    options = ["--config", "reference", "--model", str(tiny_model), "--device", "cpu", *settings]

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "data_engine.cli", *arguments]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
        assert PLANTED not in done.stdout + done.stderr
        assert "Traceback" not in done.stderr or "--debug" in arguments
        return done

    server.accepts = "second"
    dry = run("generate", server.link("a.tar", "first"), "out", *options, "--dry-run")
    assert (dry.returncode, "a.tar?id=7" in dry.stdout) == (0, True)
    assert run("generate", server.link("a.tar", "first"), "out", *options).returncode == 1  # it has expired
    assert read_plan(str(tmp_path / "out")) is not None
    resumed = run("--debug", "generate", server.link("a.tar", "second"), "out", *options)
    assert resumed.returncode == 3, resumed.stderr
    assert [row["status"] for row in rows(tmp_path / "out")[0]] == ["ok", "failed", "ok"]
    assert run("audit", "out").returncode == 0
    assert "a.tar?id=7" in run("status", "out").stdout
    exported = run("export", "out", "sa1b", "--format", "sa1b", "--input", server.link("a.tar", "second"))
    assert (exported.returncode, "2 images" in exported.stdout) == (0, True)
    assert run("export", "out", "x", "--format", "sa1b").returncode == 3  # without a link the originals are missing
    assert run("export", "out", "x", "--format", "sa1b", "--input", "https://else/b.tar?sig=1").returncode == 2
    for folder in ("out", "sa1b"):
        assert PLANTED.encode() not in written(tmp_path / folder)
        assert b"X-Amz" not in written(tmp_path / folder)


def manifest(server: Server, path: Path, signature: str, names: tuple[str, ...] = ("0.jpg", "1.jpg", "2.jpg")) -> Path:
    path.write_text("".join(server.link(name, signature) + "\n" for name in names))
    return path


@pytest.fixture
def listed(server, tiny_model, tmp_path):
    """(server, configuration, manifest of three links signed with `first`)"""
    server.files = {f"{i}.jpg": picture(i) for i in range(3)}
    server.accepts = "second"
    config = config_for(tiny_model, "input.allow_private_hosts=true")
    return server, config, manifest(server, tmp_path / "list.txt", "first")


def test_the_links_of_a_manifest_are_taken_from_it_anew(listed, tmp_path):
    server, config, path = listed
    out = tmp_path / "out"
    plan = make_plan(str(path), config)
    write_plan(str(out), plan)
    manifest(server, path, "second")
    report = generate(str(path), str(out), config)
    assert (report.complete, report.totals.failed) == (True, 0)
    images, _ = rows(out)
    base = f"http://127.0.0.1:{server.server_port}"
    assert [row["uri"] for row in images] == [f"{base}/{i}.jpg?id=7" for i in range(3)]
    assert [row["image_id"] for row in images] == [row["uri"] for row in images]
    assert PLANTED.encode() not in written(out)


def test_without_its_links_a_shard_fails_and_no_image_does(listed, tmp_path):
    """Its images would be failed rows for good, though a new link has them."""
    _, config, path = listed
    out = tmp_path / "out"
    write_plan(str(out), make_plan(str(path), config))
    path.unlink()
    report = generate(str(path), str(out), config)
    assert (report.complete, report.totals.images) == (False, 0)
    assert "signed link" in report.failed_shards[0].message


def test_a_plan_read_back_gets_the_links_of_the_plan_made_anew(listed, tmp_path):
    server, config, path = listed
    plan = make_plan(str(path), config)
    assert [file.location for file in plan.shards[0].shard.files] == path.read_text().split()
    assert PLANTED not in repr(plan)
    assert write_plan(str(tmp_path / "out"), plan) is plan
    stands = read_plan(str(tmp_path / "out"))
    assert stands == plan
    assert stands.fingerprint == plan.fingerprint
    assert (plan.lacks_links, stands.lacks_links) == (False, True)
    manifest(server, path, "second", ("0.jpg", "1.jpg", "2.jpg", "3.jpg"))  # renewed, and grown: the shard has a new id
    current = make_plan(str(path), config)
    assert new_inputs(stands, current) == 1
    for renewed in (with_links(stands, current), relinked(stands)):
        assert renewed == plan
        assert [file.location for file in renewed.shards[0].shard.files] == path.read_text().split()[:3]
    assert write_plan(str(tmp_path / "out"), with_links(plan, plan)).shards[0].shard.files[0].link.endswith("first")


def test_an_expired_link_is_no_failed_image(listed, tmp_path):
    server, config, path = listed
    path.write_text(path.read_text().replace("20990101", "20200101"))
    report = generate(str(path), str(tmp_path / "out"), config)
    assert (report.complete, report.totals.images) == (False, 0)
    assert "expired" in report.failed_shards[0].message
    server.accepts = "first"
    assert generate(str(path), str(tmp_path / "out"), config).exit_code == 0


def test_the_same_file_signed_twice_is_refused(server, tiny_model):
    from data_engine.errors import SourceError
    from data_engine.images.settings import InputSettings
    from data_engine.images.sources import list_shards

    server.files["a.tar"] = b""
    twice = server.link("a.tar", "{first,second}")
    with pytest.raises(SourceError, match="twice"):
        list_shards(twice, InputSettings(allow_private_hosts=True))


def test_a_signed_model_is_named_without_its_signature(tiny_model, tmp_path, monkeypatch):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/a.jpg").write_bytes(picture(0))
    monkeypatch.setattr("data_engine.sam.checkpoints.identify", lambda name: "0" * 64)  # fetches nothing
    config = config_for(tiny_model, f'model.name="https://h/m.safetensors?X-Amz-Signature={PLANTED}"')
    plan = make_plan(str(tmp_path / "photos"), config)
    assert plan.model_name == "https://h/m.safetensors"
    assert PLANTED not in repr(plan) + str(plan.metadata())


def test_links_travel_in_memory_only():
    import pickle

    file = FileEntry("a", "https://h/a.jpg", link="https://h/a.jpg?sig=x")
    planned = PlannedShard(Shard(id="0" * 16, kind="files", uri="https://h/l.txt", files=(file,)))
    assert pickle.loads(pickle.dumps(planned)).shard.files[0].location == "https://h/a.jpg?sig=x"  # to another node
    assert "sig" not in repr(planned)
