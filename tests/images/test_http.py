"""Inputs over http, against a real server on this machine: ranges, faults, and the guard against private addresses."""

import http.server
import re
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from encoded import outcome, png, read_all, tar

from data_engine.errors import DataEngineError, StorageError
from data_engine.images import retry
from data_engine.images.hosts import PrivateHost, _public_socket
from data_engine.images.settings import InputSettings
from data_engine.images.shard import FileEntry, ShardDamaged
from data_engine.images.sources import list_shards, read_shard
from data_engine.retry import Patience

pytest.importorskip("aiohttp")
ALLOWED = InputSettings(allow_private_hosts=True, max_image_bytes=1 << 20)
TAR = tar([(f"{i}.jpg", bytes([i]) * 300_000) for i in range(40)])


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves `server.files`; what a path begins with says how badly."""

    protocol_version = "HTTP/1.1"
    server: "Server"

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, body: bool) -> None:
        self.server.requests[self.path] += 1
        mode, _, name = self.path[1:].partition("/")
        if mode == "redirect":
            return self.reply(302, b"", {"Location": self.server.redirect_to})
        if mode == "denied":
            return self.reply(403, b"")
        if mode == "busy" and self.server.requests[self.path] <= 2:
            return self.reply(503, b"")
        if mode == "down":
            return self.reply(503, b"")
        data = self.server.files.get(name)
        if data is None:
            return self.reply(404, b"no such thing")
        if mode == "endless":
            self.send_response(200)
            self.send_header("Connection", "close")
            self.end_headers()
            self.close_connection = True
            for _ in range(100 if body else 0):
                self.wfile.write(bytes(1 << 20))
                self.server.sent += 1 << 20
            return None
        if mode == "drip":
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            for byte in data:
                self.wfile.write(bytes([byte]))
                time.sleep(0.05)
            return None
        status, headers = 200, {"ETag": f'"{len(data)}{self.server.version}"', "Content-Length": str(len(data))}
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if asked and mode != "norange":
            first, last = int(asked[1]), int(asked[2] or len(data) - 1)
            status = 206
            headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
            data = data[first : last + 1]
            headers["Content-Length"] = str(len(data))
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.end_headers()
        if not body:
            return None
        if mode == "cut" and self.server.requests[self.path] % 5:
            self.close_connection = True
            data = data[: len(data) // 2]
        self.server.sent += len(data)
        self.wfile.write(data)
        return None

    def reply(self, status: int, data: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in {**(headers or {}), "Content-Length": str(len(data))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *args: Any) -> None:
        pass


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.requests: Counter[str] = Counter()
        self.redirect_to = ""
        self.sent = 0
        self.version = ""

    def handle_error(self, *args: Any) -> None:
        pass  # clients that hang up


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(retry, "HTTP", Patience(seconds=1, first_pause=0.01, longest_pause=0.05))
    with Server() as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield server
        server.shutdown()


def url(server: Server, path: str) -> str:
    return f"http://127.0.0.1:{server.server_port}/{path}"


def fetch(server: Server, path: str, settings: InputSettings = ALLOWED, size: int | None = None) -> bytes | str:
    """The bytes of one manifest entry, or its error's type and text."""
    from data_engine.images.fetch import fetch as fetch_entry
    from data_engine.images.shard import ImageError

    try:
        return fetch_entry(FileEntry("x", url(server, path), size), settings)
    except ImageError as error:
        return f"{error.type}: {error}"


def test_manifest(server: Server) -> None:
    server.files = {"a.png": png(1), "sub/b c.png": png(2), "q.png?size=1&key=%2F": png(3), "empty.png": b""}
    entries = ["a.png", "sub/b c.png", "q.png?size=1&key=%2F", "no.png", url(server, "ok/a.png"), "empty.png"]
    server.files["list.txt"] = "\n".join(entries).encode()
    server.files["sub/b%20c.png"] = png(2)
    images = read_all(url(server, "ok/list.txt"), ALLOWED)
    assert [image.data or image.error.type for image in images] == [
        png(1),
        png(2),
        png(3),
        "unreadable",
        png(1),
        "empty",
    ]
    assert images[0].image_id == "a.png"
    assert images[2].image_id == "q.png?size=1"  # what may be a secret is no part of a name


def test_errors_that_pass_and_errors_that_do_not(server: Server) -> None:
    server.files = {"a.png": png(), "large.png": bytes((1 << 20) + 1)}
    assert fetch(server, "busy/a.png") == png()
    assert server.requests["/busy/a.png"] == 3
    assert fetch(server, "denied/a.png").startswith("unreadable: ")
    assert server.requests["/denied/a.png"] == 1
    assert fetch(server, "ok/none.png") == "unreadable: not found"
    assert server.requests["/ok/none.png"] == 1
    assert fetch(server, "down/a.png").startswith("unreadable: ")
    assert server.requests["/down/a.png"] > 2
    assert fetch(server, "cut/a.png") == png()  # the fifth answer is whole
    assert fetch(server, "ok/large.png").startswith("too_large: ")
    assert fetch(server, "ok/a.png", size=3).startswith("unreadable: changed")
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        entry = FileEntry("x", f"http://127.0.0.1:{unused.getsockname()[1]}/x.png")
        (image,) = read_shard_of(entry)
        assert image.error.type == "unreadable"


def read_shard_of(entry: FileEntry, settings: InputSettings = ALLOWED) -> list:
    from data_engine.images.shard import Shard

    return list(read_shard(Shard(id="0" * 16, kind="files", uri="http://x/list.txt", files=(entry,)), settings))


def test_endless_answers_are_cut_off(server: Server) -> None:
    server.files = {"a.png": b"x"}
    begun = time.perf_counter()
    assert fetch(server, "endless/a.png").startswith("too_large: ")
    assert time.perf_counter() - begun < 5
    assert server.sent < 60 << 20


def test_a_server_that_drips_does_not_keep_the_job(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    server.files = {"a.png": bytes(1000)}  # 50 s
    monkeypatch.setattr("data_engine.images.fetch._SLOW_FOR_S", 0.5)
    begun = time.perf_counter()
    assert fetch(server, "drip/a.png").startswith("unreadable: its web server is too slow: ")
    assert time.perf_counter() - begun < 10


@pytest.mark.parametrize("mode", ["ok", "norange", "cut"])
def test_tar(server: Server, mode: str) -> None:
    """With ranges, without, and over connections that keep breaking."""
    server.files = {"a.tar": TAR}
    (shard,) = list_shards(url(server, f"{mode}/a.tar"), ALLOWED).shards
    assert (shard.size, shard.etag, shard.prefix) == (len(TAR), str(len(TAR)), "a.tar")
    images = list(read_shard(shard, ALLOWED))
    assert outcome(images) == {f"a.tar/{i}.jpg": bytes([i]) * 300_000 for i in range(40)}
    server.sent = 0
    rest = list(read_shard(shard, ALLOWED, start=38, offset=images[37].next_offset, seen_ids=["x"]))
    assert rest == images[38:]
    if mode == "ok":
        assert server.sent < 1 << 20


def test_signed_urls(server: Server) -> None:
    """The signature is sent, and is found in nothing that reaches a dataset or a terminal."""
    signed = "a.tar?X-Amz-Expires=60&X-Amz-Signature=planted%2F"
    server.files = {signed: tar([("x.jpg", b"1")])[:-9000]}
    (shard,) = list_shards(url(server, f"ok/{signed}"), ALLOWED).shards
    reading = read_shard(shard, ALLOWED)
    image = next(reading)
    assert image.image_id == "a.tar/x.jpg"
    with pytest.raises(ShardDamaged) as caught:
        next(reading)
    assert "planted" not in f"{image} {shard.prefix} {caught.value}"


def test_a_tar_that_changes(server: Server) -> None:
    server.files = {"a.tar": TAR}
    (shard,) = list_shards(url(server, "ok/a.tar"), ALLOWED).shards
    server.files = {"a.tar": tar([("0.jpg", b"other")])}
    with pytest.raises(ShardDamaged) as caught:
        list(read_shard(shard, ALLOWED))
    assert caught.value.reason == "changed"


def test_two_versions_are_never_mixed(server: Server) -> None:
    """The connection breaks, and what is there when it is made again is another tar of the same length."""
    server.files = {"a.tar": TAR}
    (shard,) = list_shards(url(server, "cut/a.tar"), ALLOWED).shards
    reading = read_shard(shard, ALLOWED)
    first = next(reading)
    server.files = {"a.tar": TAR.replace(bytes([30]) * 1000, bytes([99]) * 1000)}
    server.version = "another"
    images = [first]
    with pytest.raises(ShardDamaged) as caught:
        images.extend(reading)
    assert caught.value.reason == "changed"
    assert len(images) > 1
    assert all(set(image.data) == {image.index} for image in images)


def test_folder_of_links(server: Server) -> None:
    server.files = {"f/": b'<a href="../">up</a><a href="a.png">a</a><a href="b.png">b</a><a href="?C=N">sort</a>'}
    server.files |= {"f/a.png": png(1), "f/b.png": png(2)}
    assert outcome(read_all(url(server, "ok/f/"), ALLOWED)) == {"a.png": png(1), "b.png": png(2)}
    assert outcome(read_all(url(server, "ok/f/{a,b}.png"), ALLOWED)) == {"a.png": png(1), "b.png": png(2)}


def test_a_server_that_is_down_fails_the_listing(server: Server) -> None:
    with pytest.raises(StorageError):
        list_shards(url(server, "down/a.tar"), ALLOWED)
    with pytest.raises(DataEngineError, match="there is nothing there"):
        list_shards(url(server, "ok/a.tar"), ALLOWED)


# ---- private addresses ----------------------------------------------------------------------------------------------


def test_private_hosts_are_refused(server: Server, tmp_path: Any) -> None:
    server.files = {"a.png": png()}
    guarded = InputSettings()
    for host in ("127.0.0.1", "localhost", "[::ffff:127.0.0.1]", "0.0.0.0", "2130706433"):
        entry = FileEntry("x", f"http://{host}:{server.server_port}/ok/a.png")
        (image,) = read_shard_of(entry, guarded)
        assert image.error.type == "unreadable", host
    assert not server.requests
    with pytest.raises(DataEngineError, match="allow_private_hosts"):
        list_shards(url(server, "ok/list.txt"), guarded)
    assert not server.requests
    (tmp_path / "list.txt").write_text(url(server, "ok/a.png"))
    (image,) = read_all(tmp_path / "list.txt")
    assert "allow_private_hosts" in str(image.error)


def test_redirects_to_private_hosts_are_refused(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first address passes for a public one here; the one that it redirects to is private."""
    from data_engine.images import hosts

    server.files = {"a.png": png()}
    first = server.server_port

    with Server() as inner:
        threading.Thread(target=inner.serve_forever, args=(0.05,), daemon=True).start()
        inner.files = {"secret.png": b"secret"}
        server.redirect_to = f"http://127.0.0.1:{inner.server_port}/ok/secret.png"

        def as_if_the_first_were_public(address: tuple[Any, ...]) -> socket.socket:
            if address[4][1] == first:
                return socket.socket(*address[:3])
            return _public_socket(address)

        async def client(**options: Any) -> Any:
            import aiohttp

            connector = aiohttp.TCPConnector(socket_factory=as_if_the_first_were_public)
            return aiohttp.ClientSession(connector=connector, **options)

        monkeypatch.setattr(hosts, "_guarded_client", client)
        guarded = InputSettings()
        assert fetch(server, "ok/a.png", guarded) == png()
        assert "allow_private_hosts" in fetch(server, "redirect/a.png", guarded)
        assert not inner.requests
        assert fetch(server, "redirect/a.png", ALLOWED) == b"secret"
        inner.shutdown()


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "10.0.0.8",
        "192.168.1.1",
        "172.16.0.1",
        "169.254.169.254",
        "100.64.0.1",
        "0.0.0.0",
        "::1",
        "fe80::1%lo",
    ],
)
def test_addresses_that_are_private(address: str) -> None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with pytest.raises(PrivateHost):
        _public_socket((family, socket.SOCK_STREAM, 6, "", (address, 80)))
    if family == socket.AF_INET:
        with pytest.raises(PrivateHost):
            _public_socket((socket.AF_INET6, socket.SOCK_STREAM, 6, "", (f"::ffff:{address}", 80, 0, 0)))


def test_addresses_that_are_public() -> None:
    _public_socket((socket.AF_INET, socket.SOCK_STREAM, 6, "", ("93.184.216.34", 80))).close()
