"""Serving the viewer on this machine's loopback address."""

from __future__ import annotations

import secrets
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress

import uvicorn

from data_engine.errors import UsageError
from data_engine.viewer.app import create_app
from data_engine.viewer.run import ViewedRun

HOST = "127.0.0.1"


def bind(port: int) -> socket.socket:
    """A listening socket on loopback; port 0 takes a free one. Raises UsageError when the port is taken."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((HOST, port))
    except (OSError, OverflowError) as error:
        listener.close()
        raise UsageError(f"port {port} cannot be used ({error}); --port 0 takes a free one") from None
    return listener


def serve(runs: Sequence[ViewedRun], port: int, on_ready: Callable[[str, str], None]) -> None:
    """Serves until SIGINT or SIGTERM.

    on_ready: told two addresses once they can be opened, with new tokens in them: the one to print, and one that works
    a single time, for the command line of a browser, which other users of the machine can see.
    """
    token, once = secrets.token_urlsafe(32), secrets.token_urlsafe(32)
    with bind(port) as listener:
        port = listener.getsockname()[1]
        config = uvicorn.Config(
            create_app(runs, token, port, once),
            log_level="warning",
            access_log=False,
            lifespan="off",
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=1,
        )
        listener.listen()  # connections wait from here on
        on_ready(*(f"http://{HOST}:{port}/?token={each}" for each in (token, once)))
        with suppress(KeyboardInterrupt):
            uvicorn.Server(config).run(sockets=[listener])
