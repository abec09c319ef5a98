"""One image that is a file of its own: its bytes, or why they cannot be had."""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any

from fsspec import AbstractFileSystem

from data_engine.errors import StorageError, UsageError
from data_engine.images.hosts import input_filesystem
from data_engine.images.retry import with_retries
from data_engine.images.settings import InputSettings
from data_engine.images.shard import AccessDenied, FileEntry, ImageError, Unreachable, existing_path
from data_engine.retry import passes, response_of
from data_engine.signed_urls import expires_at
from data_engine.storage import is_local, local_path, redact, scheme_of, whole_object

_THIS_MACHINE_AT_FAULT = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS, errno.EADDRNOTAVAIL}
# What a network mount says whose server is away or was restarted. Of a web server it is that server's own fault.
_MOUNT_AWAY = {
    *(errno.ESTALE, errno.ENOTCONN, errno.ETIMEDOUT, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ECONNRESET),
}
_CREDENTIALS_AT_FAULT = {
    "ExpiredToken",
    "InvalidAccessKeyId",
    "InvalidToken",
    "RequestTimeTooSkewed",
    "SignatureDoesNotMatch",
    "TokenRefreshRequired",
}
_SLOW_FOR_S, _SLOWEST = 60.0, 1000  # seconds, and bytes a second: less for longer is no image's way to come


def fetch(entry: FileEntry, settings: InputSettings) -> bytes:
    """The bytes of a file. Raises ImageError; StorageError where the fault is the store's and not the image's, and
    SourceError for a signed link that is not at hand."""
    if entry.size is not None:
        _check_length(entry.size, settings)
    try:
        data = _local(entry, settings) if is_local(entry.uri) else _remote(entry, settings)
    except FileNotFoundError:
        _refuse_expired(entry)
        raise ImageError("unreadable", "not found") from None
    except (UsageError, OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno in _THIS_MACHINE_AT_FAULT | _MOUNT_AWAY:
            raise StorageError(f"{redact(entry.uri)}: {error.strerror}") from error
        kind = AccessDenied if isinstance(error, PermissionError) else ImageError
        raise kind("unreadable", _one_line(error)) from None
    except StorageError as error:
        _refuse_expired(entry)
        cause = error.__cause__
        if _is_the_stores_fault(entry.uri, cause):
            raise
        if cause is not None and response_of(cause)[1] is None and passes(cause):
            raise Unreachable("unreadable", _one_line(cause)) from cause
        kind = AccessDenied if isinstance(cause, PermissionError) else ImageError
        raise kind("unreadable", _one_line(cause or error)) from None
    if entry.size is not None and len(data) != entry.size:
        raise ImageError("unreadable", f"changed since it was listed: {entry.size:,} bytes then, {len(data):,} now")
    if not data:
        raise ImageError("empty", "0 bytes")
    return data


def version(info: Mapping[str, Any]) -> str | None:
    """What changes when an object does, from what a file system says of it: its ETag, or when it was last changed."""
    for key in ("ETag", "etag", "blob_id", "Content-MD5", "mtime", "Last-Modified", "created"):
        value = info.get(key)
        if value:
            return str(value.timestamp() if isinstance(value, datetime) else value).strip('"')
    return None


def local_version(status: os.stat_result) -> str:
    """`version` of a local file."""
    return str(status.st_mtime)


def _local(entry: FileEntry, settings: InputSettings) -> bytes:
    path = existing_path(local_path(entry.uri))
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):  # opening a pipe or a device may never return
        raise ImageError("unreadable", "not a regular file")
    if entry.etag is not None and local_version(status) != entry.etag:
        raise ImageError("unreadable", "changed since it was listed")
    _check_length(status.st_size, settings)
    with path.open("rb") as file:
        return file.read(settings.max_image_bytes + 1)


def _remote(entry: FileEntry, settings: InputSettings) -> bytes:
    location = entry.location
    fs, path = input_filesystem(location, settings)
    if scheme_of(entry.uri) in ("http", "https"):
        return with_retries(location, lambda: _response(fs, path, settings))
    if entry.size is not None:
        return with_retries(location, lambda: _whole_object(fs, path, entry.size))
    if "s3" in fs.protocol:  # one request instead of two: a manifest may name millions
        data = with_retries(location, lambda: _start_of_object(fs, path, settings.max_image_bytes + 1))
        _check_length(len(data), settings)
        return data
    size = with_retries(location, lambda: fs.info(path)).get("size")
    _check_length(size or 0, settings)
    return with_retries(location, lambda: _whole_object(fs, path, size))


def _refuse_expired(entry: FileEntry) -> None:
    """An image that failed because its link is too old can be had with a new one: it is no failed row."""
    until = expires_at(entry.link) if entry.link else None
    if until is not None and until < datetime.now(timezone.utc):
        raise StorageError(
            f"{redact(entry.uri)}: its signed link has expired; run the same command with the links signed anew"
        )


def _whole_object(fs: AbstractFileSystem, path: str, size: int | None) -> bytes:
    data = whole_object(fs, path)
    if size and not data:
        _refuse_empty_answer(fs, path)
    return data


def _start_of_object(fs: AbstractFileSystem, path: str, length: int) -> bytes:
    """Up to `length` bytes. Knows S3's ways."""
    path, _, version_id = path.partition("?versionId=")  # s3fs passes over it
    try:
        data: bytes = fs.cat_file(path, start=0, end=length, version_id=version_id or None)
    except OSError as error:
        if response_of(error)[1] != 416:  # an empty object has no such range
            raise
        data = b""
    if not data and not version_id:
        _refuse_empty_answer(fs, path)
    return data


def _refuse_empty_answer(fs: AbstractFileSystem, path: str) -> None:
    """Raises ConnectionError unless the object is empty. Seen of overloaded stores: 200, and nothing in it."""
    if size := fs.info(path).get("size"):
        raise ConnectionError(f"an empty answer instead of {size:,} bytes")


def answers(address: str, settings: InputSettings) -> bool:
    """Whether a web server says anything, be it that it will not."""
    fs, url = input_filesystem(address, settings)
    try:
        fs.open(url, "rb", block_size=0, size=1).close()
    except Exception as error:  # of whatever library
        return isinstance(error, FileNotFoundError) or response_of(error)[1] is not None
    return True


def _response(fs: AbstractFileSystem, url: str, settings: InputSettings) -> bytes:
    """The body of one request, cut off where it is too long. A web server need not say the length before."""
    pieces, length, begun = [], 0, time.monotonic()
    with fs.open(url, "rb", block_size=0, size=1) as body:
        while piece := body.read(1 << 20):
            pieces.append(piece)
            length += len(piece)
            _check_length(length, settings)
            seconds = time.monotonic() - begun
            if seconds > _SLOW_FOR_S and length < _SLOWEST * seconds:  # one that drips would keep the job for hours
                raise ImageError("unreadable", f"its web server is too slow: {length:,} bytes in {seconds:.0f} s")
    return b"".join(pieces)


def _check_length(length: int, settings: InputSettings) -> None:
    if length > settings.max_image_bytes:
        raise ImageError(
            "too_large", f"{length:,} bytes or more, above input.max_image_bytes = {settings.max_image_bytes:,}"
        )


def _is_the_stores_fault(uri: str, cause: BaseException | None) -> bool:
    """Whether every other image would fail too: then the shard must wait for better times, not end as failed rows."""
    if getattr(cause, "errno", None) in _THIS_MACHINE_AT_FAULT:
        return True
    if scheme_of(uri) in ("file", "http", "https") or _names_nothing(cause):
        return False
    origin = cause.__cause__ if isinstance(cause, PermissionError) else None
    response = getattr(origin, "response", None)
    code = response.get("Error", {}).get("Code") if isinstance(response, dict) else None
    return not isinstance(cause, PermissionError) or code in _CREDENTIALS_AT_FAULT


def _names_nothing(cause: BaseException | None) -> bool:
    """Whether no object can have this name: a manifest may say anything, as s3://bucket or a key of a page's length."""
    return type(cause).__name__ == "ParamValidationError" or getattr(cause, "errno", None) == errno.ENAMETOOLONG


def _one_line(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror  # without the path: the row names the image already
    if isinstance(error, PermissionError):
        return "access denied"
    text = " ".join(redact(str(error)).split())[:300]
    return text or type(error).__name__
