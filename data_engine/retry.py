"""Waiting out what passes: overloaded stores, dropped connections, time-outs, outages of a minute."""

from __future__ import annotations

import errno
import logging
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from data_engine.errors import StorageError

log = logging.getLogger(__name__)
T = TypeVar("T")

_LASTING_ERRNOS = {
    errno.EINVAL,
    errno.ENAMETOOLONG,
    errno.ELOOP,
    errno.EISDIR,
    errno.ENOTDIR,
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOSYS,
}
_LASTING_TYPES = {
    "NoCredentialsError",
    "PartialCredentialsError",
    "ProfileNotFound",
    "ParamValidationError",
    "SSOTokenLoadError",
    "TokenRetrievalError",
    "UnauthorizedSSOTokenError",
}
# Stores say these with a 400, though the same request may well succeed: a body was damaged or late on its way.
_PASSING_CODES = {"RequestTimeout", "IncompleteBody", "BadDigest", "XAmzContentSHA256Mismatch"}
_PASSING_STATUS = {408, 409, 425, 429}
_SAY_SO_AFTER_S = 5.0


@dataclass(frozen=True, slots=True)
class Patience:
    """How long to try again, and with which pauses: each about twice the one before."""

    seconds: float = 120.0
    first_pause: float = 0.5
    longest_pause: float = 15.0
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    jitter: Callable[[float, float], float] = random.uniform

    def pause(self, tries: int) -> float:
        """Seconds to wait after so many tries. Spread, so that many clients do not come back at once."""
        return min(self.longest_pause, self.first_pause * 2.0 ** min(tries - 1, 30)) * self.jitter(0.5, 1.5)


PATIENT = Patience()
ONCE = Patience(seconds=0.0)


def retried(action: Callable[[], T], patience: Patience = PATIENT) -> T:
    """`action()`, tried again while it raises a StorageError whose `__cause__` passes, until patience ends."""
    begun = patience.clock()
    tries, said = 0, False
    while True:
        try:
            return action()
        except StorageError as error:
            tries += 1
            waited = patience.clock() - begun
            if not passes(error.__cause__):
                raise
            if waited >= patience.seconds:
                if tries == 1:
                    raise
                raise StorageError(
                    f"{error}; tried {tries} times in {waited:.0f} s. Nothing is lost: run the same command again"
                ) from error.__cause__
            if waited >= _SAY_SO_AFTER_S and not said:
                said = True
                log.warning("%s; trying again for %.0f s", error, patience.seconds - waited)
        patience.sleep(min(patience.pause(tries), max(0.0, patience.seconds - waited)))


def passes(error: BaseException | None) -> bool:
    """Whether the request that met `error` may well succeed in a while."""
    if error is None:  # raised by us, who know better
        return False
    if isinstance(error, (PermissionError, FileNotFoundError, ValueError)) or type(error).__name__ in _LASTING_TYPES:
        return False
    code, status = response_of(error)
    if code in _PASSING_CODES:
        return True
    if status is not None:
        return status in _PASSING_STATUS or (status >= 500 and status != 501)
    return not (isinstance(error, OSError) and error.errno in _LASTING_ERRNOS)


def response_of(error: BaseException | None) -> tuple[str | None, int | None]:
    """(error code, HTTP status) of the answer behind an exception, as far as it tells."""
    for cause in (error, error.__cause__ if error is not None else None):
        response = getattr(cause, "response", None)  # of botocore's ClientError
        if isinstance(response, dict):
            status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
            return response.get("Error", {}).get("Code"), status
        status = getattr(cause, "status", None)  # of aiohttp's ClientResponseError
        if isinstance(status, int):
            return None, status
    return None, None
