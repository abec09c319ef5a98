"""How long an input is waited for: a store is worth two minutes, a web server that a manifest names a few seconds."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from data_engine.retry import ONCE, PATIENT, Patience, retried
from data_engine.storage import is_local, scheme_of, translated

T = TypeVar("T")

STORE = PATIENT
HTTP = Patience(seconds=5.0)  # the web servers that a manifest names are many, and some are gone for good


def with_retries(uri: str, call: Callable[[], T]) -> T:
    """`call()`, tried again while its error is one that passes. Raises FileNotFoundError or StorageError.

    The StorageError's `__cause__` is the back end's own error.
    """
    over_http = scheme_of(uri) in ("http", "https")

    def once() -> T:
        with translated(uri):
            try:
                return call()
            except FileNotFoundError as error:
                # fsspec's http says "not found" whatever its first request met
                cause = error.__cause__ if over_http else None
                if isinstance(cause, Exception) and getattr(cause, "status", None) != 404:
                    raise cause from None
                raise

    return retried(once, ONCE if is_local(uri) else HTTP if over_http else STORE)
