"""Into a Ray cluster and out of it."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray

from data_engine.errors import ClusterError

_KNOCK_S = 10.0


@contextmanager
def connected(address: str | None, *, log_to_driver: bool = False) -> Iterator[None]:
    """Joins the cluster that is meant, or starts one on this machine; leaves it at the end unless we were in it.

    log_to_driver: what workers print is printed here, too.
    Raises ClusterError.
    """
    if ray.is_initialized():
        yield
        return
    options: dict[str, Any] = {"log_to_driver": log_to_driver, "logging_level": logging.WARNING}
    where = address or os.environ.get("RAY_ADDRESS")
    if where is None:
        options["include_dashboard"] = False  # of a cluster that is started here
    try:
        _knock(where)
        with _sigterm_kept():
            ray.init(address=address, **options)
    except (OSError, RuntimeError, ValueError) as error:
        raise ClusterError(
            f"the Ray cluster {where or 'on this machine'} cannot be used ({' '.join(str(error).split())[:300]}); "
            "see `ray status`, or set run.ray.address"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def _sigterm_kept() -> Iterator[None]:
    """`ray.init` takes SIGTERM for itself and would end the driver at once: who listened before still does."""
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if callable(handler) and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)


def _knock(address: str | None) -> None:
    """Fails soon where nobody listens: Ray itself tries for minutes. Raises OSError."""
    host, separator, port = (address or "").removeprefix("ray://").rpartition(":")
    if separator and port.isdigit():
        socket.create_connection((host, int(port)), timeout=_KNOCK_S).close()
