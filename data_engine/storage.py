"""Local paths and fsspec URLs behind one door: which schemes are allowed, and one kind of error for all of them.

fsspec back ends fail in a dozen ways (OSError, aiohttp.ClientError, botocore's own, time-outs). Callers of this
module see two: FileNotFoundError, and StorageError with the URI, the cause and a remedy.
"""

from __future__ import annotations

import ipaddress
import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import fsspec
from fsspec import AbstractFileSystem

from data_engine.errors import StorageError, UsageError
from data_engine.retry import ONCE, PATIENT, Patience, response_of, retried
from data_engine.signed_urls import is_secret, mask_urls

# scheme -> the package that serves it, named in the error when it is not installed
_PACKAGES = {
    "file": "fsspec",
    "memory": "fsspec",
    "s3": "s3fs",
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "az": "adlfs",
    "abfs": "adlfs",
    "abfss": "adlfs",
    "hf": "huggingface_hub",
    "http": "aiohttp",
    "https": "aiohttp",
}
_PARAMETER = r"(?:secret|token|password|signature|credential|sig|key)[\w-]*=)[^&\s'\"]+"
_USER = r"(//)[^/@\s]+:[^/@\s]+@"
_LINK = re.compile(r"https?://[^\s'\"<>]+", re.IGNORECASE)
_FOLDER = re.compile(r"(?<=/)([\w.-]+)=[^/&]+")
_IN_A_QUERY = re.compile(rf"(?i)({_PARAMETER}|{_USER}")
_ANYWHERE = re.compile(rf"(?i)(?<![\w/-])([\w-]*{_PARAMETER}|{_USER}")  # not the folder in photos/user_key=7/a.jpg


def scheme_of(uri: str) -> str:
    """ "s3" of "s3://bucket/key"; "file" of a local path."""
    match = re.match(r"([A-Za-z][A-Za-z0-9+.-]+)://", uri)
    return match[1].lower() if match else "file"


def is_local(uri: str) -> bool:
    return scheme_of(uri) == "file"


def filesystem(uri: str) -> tuple[AbstractFileSystem, str]:
    """A path or URL -> (file system, path inside it). Raises UsageError for what is not allowed or not installed."""
    if "::" in uri:
        raise UsageError(f"{redact(uri)}: chained URLs are not supported; name the file itself")
    scheme = scheme_of(uri)
    if scheme not in _PACKAGES:
        raise UsageError(
            f"{redact(uri)}: scheme {scheme!r} is not supported; use a local path or {', '.join(_PACKAGES)}"
        )
    if "@" in urlsplit(uri).netloc and scheme != "abfs" and scheme != "abfss":
        raise UsageError(f"{redact(uri)}: credentials do not belong in a URL; set them in the environment")
    if scheme == "file":
        return fsspec.filesystem("file"), str(local_path(uri))
    try:
        fs = fsspec.filesystem(scheme, **_OPTIONS.get(scheme, {}))
    except (ImportError, ValueError) as error:
        package = _PACKAGES[scheme]
        raise UsageError(
            f"{redact(uri)}: {scheme}:// needs the package {package}: pip install {package} ({error})"
        ) from None
    if scheme == "s3":
        fs.retries = _S3FS_TRIES
    return fs, fs._strip_protocol(uri)


# Listings are read once and must be current, so none is cached. Few tries at this level: botocore and s3fs multiply
# theirs (25 requests for one), and data_engine.retry waits longer than both.
_S3FS_TRIES = 2
_S3_CLIENT = {"connect_timeout": 20, "read_timeout": 60, "retries": {"mode": "standard", "total_max_attempts": 3}}
_OPTIONS: dict[str, dict[str, Any]] = {
    "s3": {"use_listings_cache": False, "config_kwargs": _S3_CLIENT},
    **{scheme: {"use_listings_cache": False} for scheme in ("gs", "gcs", "az", "abfs", "abfss")},
}


def join(root: str, *parts: str) -> str:
    """`root` (path or URL) with `parts` below it."""
    return "/".join([root.rstrip("/") or "/", *(part.strip("/") for part in parts)])


def read_bytes(uri: str, patience: Patience = PATIENT) -> bytes:
    """The whole object. Raises FileNotFoundError or StorageError."""
    return retried(lambda: _read(uri), ONCE if is_local(uri) else patience)


def read_range(uri: str, start: int, stop: int, patience: Patience = PATIENT) -> bytes:
    """Bytes `start` to `stop` of an object, in one request."""
    return retried(lambda: _read_range(uri, start, stop), ONCE if is_local(uri) else patience)


def whole_object(fs: AbstractFileSystem, path: str) -> bytes:
    """All bytes of an object in one request. Raises what the file system raises."""
    # With more than one connection s3fs asks for the size first, to see whether it should read in pieces.
    data: bytes = fs.cat_file(path, max_concurrency=1) if "s3" in fs.protocol else fs.cat_file(path)
    return data


def list_names(uri: str, patience: Patience = PATIENT) -> list[str]:
    """The names of the files directly below a folder, sorted; empty if there is no such folder."""
    entries = retried(lambda: _list(uri), ONCE if is_local(uri) else patience)
    return sorted(entry["name"].rstrip("/").rsplit("/", 1)[-1] for entry in entries if entry["type"] == "file")


def _read(uri: str) -> bytes:
    fs, path = filesystem(uri)
    with translated(uri):
        data = whole_object(fs, path)
        if not data and not is_local(uri) and (size := fs.info(path).get("size")):
            raise ConnectionError(f"an empty answer instead of {size:,} bytes")  # seen of overloaded stores
    return data


def _read_range(uri: str, start: int, stop: int) -> bytes:
    fs, path = filesystem(uri)
    with translated(uri):
        data: bytes = fs.cat_file(path, start=start, end=stop)
        if not data and not is_local(uri):
            raise ConnectionError(f"an empty answer instead of {stop - start:,} bytes")
        return data


def _list(uri: str) -> list[dict[str, Any]]:
    fs, path = filesystem(uri)
    with translated(uri):
        try:
            return fs.ls(path, detail=True)
        except FileNotFoundError:
            return []


@contextmanager
def translated(uri: str) -> Iterator[None]:
    """Turns whatever a back end raises inside the block into FileNotFoundError or StorageError."""
    try:
        yield
    except (FileNotFoundError, FileExistsError, StorageError, UsageError, MemoryError):
        raise
    except PermissionError as error:
        raise StorageError(f"{redact(uri)}: access denied ({_brief(error)}); {_access_remedy(uri, error)}") from error
    except (OSError, ConnectionError, TimeoutError) as error:
        raise StorageError(f"{redact(uri)}: {_brief(error)}") from error
    except Exception as error:
        if type(error).__module__.split(".")[0] not in _CLIENT_LIBRARIES:
            raise
        if type(error).__name__ == "NoCredentialsError":
            raise StorageError(
                f"{redact(uri)}: no credentials found; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
                "or run where the platform provides a role"
            ) from error
        raise StorageError(f"{redact(uri)}: {_brief(error)}") from error


def _access_remedy(uri: str, error: PermissionError) -> str:
    code, _ = response_of(error)
    if code == "RequestTimeTooSkewed":
        return "set this machine's clock"
    if code == "ExpiredToken":
        return "the credentials have expired: renew them and run the same command again"
    if scheme_of(uri) == "s3":
        return (
            "check the permissions of the bucket and the credentials (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, "
            "AWS_SESSION_TOKEN, AWS_PROFILE or the role of this machine)"
        )
    return "check the permissions or credentials"


_CLIENT_LIBRARIES = {
    "aiohttp",
    "botocore",
    "aiobotocore",
    "fsspec",
    "s3fs",
    "gcsfs",
    "adlfs",
    "azure",
    "google",
    "huggingface_hub",
    "httpx",  # of huggingface_hub, as are the others
    "httpx2",
    "httpcore",
    "httpcore2",
    "requests",
    "urllib3",
    "asyncio",
}


def redact(text: str) -> str:
    """`text` without the secrets that URLs and error messages carry."""
    text = _LINK.sub(lambda link: _redacted_link(link[0]), mask_urls(text))
    return _ANYWHERE.sub(_masked, text)


def _redacted_link(link: str) -> str:
    """A web address without what may be a secret in its query, or is named like one in a folder of its path."""
    path, mark, query = link.partition("?")
    path = _FOLDER.sub(lambda match: f"{match[1]}=***" if is_secret(match[1]) else match[0], path)
    return re.sub(_USER, r"\1***@", path) + _IN_A_QUERY.sub(_masked, mark + query)


def _masked(match: re.Match[str]) -> str:
    return f"{match[1]}***" if match[1] else f"{match[2]}***@"


def private_host(uri: str) -> bool:
    """Whether an http(s) URL leads to this machine, a private network or a metadata service."""
    host = urlsplit(uri).hostname or ""
    try:
        addresses = {info[4][0] for info in socket.getaddrinfo(host, None)}
    except OSError:
        return False  # it cannot be reached at all; fetching will say so
    return any(not ipaddress.ip_address(address.split("%")[0]).is_global for address in map(str, addresses))


def local_path(uri: str) -> Path:
    """The absolute Path of a local URI; links are kept as they are. Raises UsageError for the home of nobody."""
    assert is_local(uri), uri
    try:
        path = Path(uri.removeprefix("file://")).expanduser()
    except RuntimeError as error:
        raise UsageError(f"{uri}: {error}; a folder that is really called so is ./{uri}") from None
    return Path(os.path.abspath(path))  # noqa: PTH100 - resolve() follows links


def refuse_unless_text(uri: str) -> None:
    """Raises UsageError for an input whose bytes are not UTF-8: the plan's table of shards cannot name it."""
    try:
        uri.encode()
    except UnicodeEncodeError:
        raise UsageError(f"{uri!a}: this path is not UTF-8, which a plan cannot name; rename it") from None


def _brief(error: Exception) -> str:
    text = redact((str(error).strip().splitlines() or [""])[0])[:300]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
