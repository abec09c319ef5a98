"""Waiting out what passes: overloaded stores, dropped connections, time-outs."""

from __future__ import annotations

import errno
import random
import time
from collections.abc import Callable
from typing import TypeVar

from data_engine.storage import StorageError, is_local, scheme_of, translated

T = TypeVar("T")

# Seconds before each further try. A store is one dependency of the whole job and worth waiting for; the web servers
# that a manifest names are many, and some are gone for good.
STORE_WAITS = (0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0)
HTTP_WAITS = (0.5, 2.0)

_LASTING = {errno.EINVAL, errno.ENAMETOOLONG, errno.ELOOP, errno.EISDIR, errno.ENOTDIR, errno.EACCES, errno.EPERM}
_LASTING_TYPES = {"NoCredentialsError", "PartialCredentialsError", "ProfileNotFound", "ParamValidationError"}


def with_retries(uri: str, call: Callable[[], T]) -> T:
    """`call()`, tried again while its error is one that passes. Raises FileNotFoundError or StorageError.

    The StorageError's `__cause__` is the back end's own error.
    """
    over_http = scheme_of(uri) in ("http", "https")
    waits = () if is_local(uri) else HTTP_WAITS if over_http else STORE_WAITS
    for wait in (*waits, None):
        try:
            with translated(uri):
                try:
                    return call()
                except FileNotFoundError as error:
                    # fsspec's http says "not found" whatever its first request met
                    cause = error.__cause__ if over_http else None
                    if isinstance(cause, Exception) and getattr(cause, "status", None) != 404:
                        raise cause from None
                    raise
        except StorageError as error:
            if wait is None or not passes(error.__cause__):
                raise
        time.sleep(wait * random.uniform(0.5, 1.0))
    raise AssertionError("the last try returns or raises")


def passes(error: BaseException | None) -> bool:
    """Whether the same request may well succeed in a while."""
    if error is None:  # raised by us, who know better
        return False
    status = getattr(error, "status", None)  # of an HTTP response
    if isinstance(status, int):
        return status in (408, 425, 429) or status >= 500
    if isinstance(error, OSError) and error.errno in _LASTING:
        return False
    return not isinstance(error, (PermissionError, ValueError)) and type(error).__name__ not in _LASTING_TYPES
