"""A web server for large files that can be told to misbehave."""

from __future__ import annotations

import hashlib
import http.server
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

CONTENT = np.random.default_rng(0).bytes(3_000_017)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Server(http.server.ThreadingHTTPServer):
    """Serves `files[path]`, else `content`, at any path. Each entry of `faults` spoils one request, in order.

    A request for the first byte alone, which asks what is there, is kept in `probed` and never spoilt.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content = CONTENT
        self.files: dict[str, bytes | None] = {}  # None: there is no such file
        self.ranges = True
        self.etag: str | None = None
        self.faults: list[str] = []
        self.asked: list[str | None] = []  # the Range header of each request
        self.probed: list[str] = []
        self.release = threading.Event()  # ends a "stall"
        self.root = f"http://127.0.0.1:{self.server_port}"
        self.url = f"{self.root}/weights.pth"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        server, wanted, fault = self.server, self.headers["Range"], ""
        if wanted == "bytes=0-0":
            server.probed.append(self.path)
        else:
            server.asked.append(wanted)
            fault = server.faults.pop(0) if server.faults else ""
        content = server.files.get(self.path.split("?")[0], server.content)
        if fault.isdigit() or content is None:
            self.send_error(int(fault or 404))
            return
        if fault == "garbage":
            self.wfile.write(b"SSH-2.0-OpenSSH\r\n")
            return
        if not server.ranges:
            wanted = None
        first, _, last = (wanted or "bytes=0-").removeprefix("bytes=").partition("-")
        start = int(first)
        if wanted and start >= len(content):
            self.send_error(416)
            return
        body = content[start : int(last) + 1 if last else None]
        if fault == "chunked":
            self.protocol_version = "HTTP/1.1"
        self.send_response(206 if wanted else 200)
        if wanted:
            self.send_header("Content-Range", f"bytes {start}-{start + len(body) - 1}/{len(content)}")
        if server.etag:
            self.send_header("ETag", server.etag)
        self.send_header(
            *(("Transfer-Encoding", "chunked") if fault == "chunked" else ("Content-Length", str(len(body))))
        )
        self.end_headers()
        if fault == "chunked":  # announces more than it sends
            self.wfile.write(b"%x\r\n" % len(body) + body[:1000])
            self.close_connection = True
        elif fault:
            self.wfile.write(body[: len(body) // 2])
            self.wfile.flush()
            if fault == "stall":
                server.release.wait(30)
        else:
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def running_server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.release.set()
        server.shutdown()
        thread.join()
