"""A proxy before an S3 server that does what stores do on bad days, when a test says so.

It passes requests on with the Host header as it came, because the signature covers it. Faults are rules: each names the
requests it meets, how many of them, and how likely. The first rule that meets a request decides what becomes of it.

Conditional writes pass one at a time: moto looks for the name and then writes, and now and then lets two of sixteen
win. Whether a store is atomic is therefore not tested through this proxy, but in test_ceph.py, without it.
"""

from __future__ import annotations

import http.client
import random
import re
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal
from urllib.parse import urlsplit

_HOP_BY_HOP = {"connection", "keep-alive", "expect", "transfer-encoding", "content-length", "te", "upgrade"}
_MESSAGES = {
    "SlowDown": "Please reduce your request rate.",
    "InternalError": "We encountered an internal error. Please try again.",
    "ConditionalRequestConflict": "A conflicting conditional operation is in progress.",
    "AccessDenied": "Access Denied",
}


@dataclass(slots=True)
class Rule:
    """What happens to the requests of a method whose path (with its query) contains a pattern."""

    action: Literal["answer", "truncate", "empty", "swallow", "delay"]
    method: str
    path: re.Pattern[str]
    times: int | None  # how many requests it meets; None: all
    chance: float
    status: int = 0
    code: str = ""
    seconds: float = 0.0
    met: int = 0


class FaultProxy:
    """`with FaultProxy("http://127.0.0.1:5000") as proxy: ...`; clients use `proxy.url`."""

    def __init__(self, upstream: str, seed: int = 0) -> None:
        address = urlsplit(upstream)
        self.upstream = (address.hostname or "", address.port or 80)
        self.requests: Counter[tuple[str, str]] = Counter()  # by method and path, faults included
        self.faults: Counter[str] = Counter()  # by action, or by status
        self._rules: list[Rule] = []
        self._random = random.Random(seed)
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self.one_at_a_time = threading.Lock()
        self._port = 0
        self._server: _Server | None = None
        self._triggers: list[tuple[str, str, int, Callable[[], object]]] = []
        self._return: threading.Timer | None = None

    def __enter__(self) -> FaultProxy:
        self.up()
        return self

    def __exit__(self, *error: object) -> None:
        if self._return is not None:
            self._return.cancel()
            self._return.join()
        self.down()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    # ---- faults -----------------------------------------------------------------------------------------------------

    def answer(
        self, status: int, code: str, method: str = "", path: str = "", times: int | None = 1, chance: float = 1.0
    ) -> Rule:
        """An error of the store, which does not see the request."""
        return self._add(Rule("answer", method, re.compile(path), times, chance, status=status, code=code))

    def truncate(self, method: str = "GET", path: str = "", times: int | None = 1) -> Rule:
        """Half of the body, though the length said otherwise; then the connection closes."""
        return self._add(Rule("truncate", method, re.compile(path), times, 1.0))

    def empty(self, method: str = "GET", path: str = "", times: int | None = 1) -> Rule:
        """200 and nothing in it."""
        return self._add(Rule("empty", method, re.compile(path), times, 1.0))

    def swallow(self, method: str = "PUT", path: str = "", times: int | None = 1) -> Rule:
        """The store does it, and the answer is lost."""
        return self._add(Rule("swallow", method, re.compile(path), times, 1.0))

    def delay(self, seconds: float, method: str = "", path: str = "", times: int | None = 1) -> Rule:
        return self._add(Rule("delay", method, re.compile(path), times, 1.0, seconds=seconds))

    def _add(self, rule: Rule) -> Rule:
        with self._lock:
            self._rules.append(rule)
        return rule

    def clear(self) -> None:
        """No more faults, and the counts begin again."""
        with self._lock:
            self._rules.clear()
            self._triggers.clear()
            self.requests.clear()
            self.faults.clear()

    def count(self, method: str = "", path: str = "") -> int:
        """Requests so far of a method whose path contains a pattern."""
        with self._lock:
            return sum(
                n for (verb, where), n in self.requests.items() if method in ("", verb) and re.search(path, where)
            )

    # ---- outages ----------------------------------------------------------------------------------------------------

    def down(self) -> None:
        """Connections are refused from now on, and those that are open break."""
        if self._server is None:
            return
        self._server.shutdown()
        self._server.server_close()
        self._server = None
        with self._lock:
            for connection in self._open:
                _break(connection)

    def up(self) -> None:
        """Listens: again on the same port, if there was one."""
        if self._server is None:
            self._server = _Server(("127.0.0.1", self._port), self)
            self._port = self._server.server_address[1]
            threading.Thread(
                target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, name="proxy", daemon=True
            ).start()

    def outage(self, seconds: float) -> None:
        """Down now, and up again after so many seconds."""
        self.faults["outage"] += 1
        self.down()
        self._return = threading.Timer(seconds, self.up)
        self._return.daemon = True
        self._return.start()

    def when(self, method: str, path: str, requests: int, action: Callable[[], object]) -> None:
        """Calls `action` as soon as so many requests of a method whose path contains a pattern have come."""
        self._triggers.append((method, path, requests, action))

    # ---- for the handlers -------------------------------------------------------------------------------------------

    def opened(self, connection: socket.socket) -> None:
        with self._lock:
            self._open.add(connection)
        if self._server is None:  # accepted at the last moment
            _break(connection)

    def closed(self, connection: socket.socket) -> None:
        with self._lock:
            self._open.discard(connection)

    def rule_for(self, method: str, path: str) -> Rule | None:
        """Counts the request, and says what shall become of it."""
        with self._lock:
            self.requests[method, path] += 1
        for trigger in [t for t in self._triggers if self.count(t[0], t[1]) >= t[2]]:
            with suppress(ValueError):  # another request was faster
                self._triggers.remove(trigger)
                trigger[3]()
        with self._lock:
            for rule in self._rules:
                used_up = rule.times is not None and rule.met >= rule.times
                if used_up or rule.method not in ("", method) or not rule.path.search(path):
                    continue
                if rule.chance < 1 and self._random.random() >= rule.chance:
                    continue
                rule.met += 1
                self.faults[str(rule.status) if rule.action == "answer" else rule.action] += 1
                return rule
        return None


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], proxy: FaultProxy) -> None:
        self.proxy = proxy
        super().__init__(address, _Handler)

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that went away, or a connection broken on purpose: nothing to report."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def setup(self) -> None:
        super().setup()
        self.upstream = http.client.HTTPConnection(*self.server.proxy.upstream, timeout=60)
        self.server.proxy.opened(self.connection)

    def finish(self) -> None:
        self.server.proxy.closed(self.connection)
        self.upstream.close()
        super().finish()

    def _pass_on(self) -> None:
        body = self._body()
        rule = self.server.proxy.rule_for(self.command, self.path)
        if rule is not None and rule.action == "answer":
            self._refuse(rule)
            return
        if rule is not None and rule.action == "delay":
            time.sleep(rule.seconds)
        conditional = self.command == "PUT" and "If-None-Match" in self.headers
        with self.server.proxy.one_at_a_time if conditional else nullcontext():
            response, data = self._ask_upstream(body)
        if rule is not None and rule.action == "swallow":
            _break(self.connection)
            self.close_connection = True
            return
        self._answer(response, data, rule)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _pass_on

    def log_message(self, format: str, *args: object) -> None:
        """Silent: a test reads the counts instead."""

    def _body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", "").lower():
            length = int(self.headers.get("Content-Length") or 0)
            body = self.rfile.read(length)
            if len(body) < length:  # a store would not take half an object either
                raise ConnectionError("the client went away in the middle of its request")
            return body
        pieces = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            pieces.append(self.rfile.read(size))
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass
        return b"".join(pieces)

    def _ask_upstream(self, body: bytes) -> tuple[http.client.HTTPResponse, bytes]:
        self.upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            if name.lower() not in _HOP_BY_HOP:
                self.upstream.putheader(name, value)
        self.upstream.putheader("Content-Length", str(len(body)))
        self.upstream.endheaders(body)
        response = self.upstream.getresponse()
        return response, response.read()

    def _answer(self, response: http.client.HTTPResponse, data: bytes, rule: Rule | None) -> None:
        action = rule.action if rule else None
        if action == "empty":
            data = b""
        self.send_response_only(response.status, response.reason)
        for name, value in response.getheaders():
            checked = action == "empty" and name.lower().startswith("x-amz-checksum")
            if name.lower() not in _HOP_BY_HOP and not checked:
                self.send_header(name, value)
        length = response.getheader("Content-Length") if self.command == "HEAD" else str(len(data))
        if length is not None:
            self.send_header("Content-Length", length)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data[: len(data) // 2] if action == "truncate" else data)
        if action == "truncate":
            self.wfile.flush()
            _break(self.connection)
            self.close_connection = True

    def _refuse(self, rule: Rule) -> None:
        data = (
            f"<Error><Code>{rule.code}</Code><Message>{_MESSAGES.get(rule.code, rule.code)}</Message></Error>".encode()
        )
        self.send_response_only(rule.status, rule.code)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


def _break(connection: socket.socket) -> None:
    with suppress(OSError):  # the other side was faster
        connection.shutdown(socket.SHUT_RDWR)
