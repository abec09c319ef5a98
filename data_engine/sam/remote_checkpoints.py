"""Checkpoints by URL: an object in a store or on a web server -> a file in the cache, once for each of its versions."""

from __future__ import annotations

import hashlib
import http.client
import json
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from itertools import count
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from fsspec import AbstractFileSystem

from data_engine.errors import CheckpointError, StorageError, UsageError
from data_engine.sam.digests import sha256_of_cached
from data_engine.sam.download import HttpSource, Replaced, Source, fetch, pause_after, raise_if_final
from data_engine.signed_urls import unsigned
from data_engine.storage import filesystem, is_local, redact, scheme_of, translated

T = TypeVar("T")

_PIECE = 16 << 20  # a request of 16 MiB takes long beside its latency; a few at a time fill a fast network
_PIECES_AHEAD = 4
_TIMEOUT_S = 30.0
_VERSIONS = ("ETag", "etag", "generation", "blob_id", "Content-MD5", "Last-Modified", "LastModified", "mtime")
_WITHOUT_CREDENTIALS = (
    *("NoCredentialsError", "PartialCredentialsError", "ProfileNotFound"),  # of S3, Google and Azure
    *("DefaultCredentialsError", "ClientAuthenticationError", "CredentialUnavailableError"),
)


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """An object as it is now."""

    url: str
    size: int | None
    version: str | None  # changes when the object does
    sha256: str | None  # where the store knows it
    source: Source

    @property
    def key(self) -> list[str | int | None]:
        """What tells this version of the object from others; the same after a signed link was renewed."""
        return [unsigned(self.url) if self.version else self.url, self.version, self.size]

    @property
    def name(self) -> str:
        """The last part of the URL's path, safe as a file name."""
        last = urlsplit(self.url).path.rstrip("/").rsplit("/", 1)[-1]
        return re.sub(r"[^A-Za-z0-9._-]", "_", last).lstrip(".")[-100:] or "checkpoint"


def is_url(name: str) -> bool:
    """Whether a model's name is a URL to fetch, not a registry name or a local path."""
    return "://" in name and not is_local(name)


def locate(url: str, backoff_s: float = 1.0) -> RemoteFile:
    """What is at a URL now: asks the store, fetches nothing. A folder stands for its model.safetensors.

    Raises CheckpointError when there is nothing or it cannot be asked, UsageError for a URL that is not allowed.
    """
    if scheme_of(url) in ("http", "https"):
        if "@" in urlsplit(url).netloc:
            raise UsageError(f"{redact(url)}: credentials do not belong in a URL; use a link that needs none, or hf://")
        return _with_retries(url, lambda: _locate_http(url), backoff_s)
    fs, path = filesystem(url)
    info = _with_retries(url, lambda: _info(fs, path, url), backoff_s)
    if info["type"] == "directory":
        url = url.rstrip("/") + "/model.safetensors"
        path = filesystem(url)[1]
        info = _with_retries(url, lambda: _info(fs, path, url), backoff_s)
    size, version = int(info["size"]), _version(info)
    return RemoteFile(url, size, version, _lfs_sha256(info), _StoreSource(url, size, version, fs, path))


def fetch_remote(file: RemoteFile, cache: Path, backoff_s: float = 1.0) -> tuple[Path, str]:
    """The object in the cache and its sha256; fetched unless this version of it is there already.

    A config.json beside a .safetensors comes with it. An object of a server that names no version is fetched once.
    """
    config = _config_beside(file, backoff_s)
    folder = cache / hashlib.sha256(json.dumps([part.key for part in (file, config) if part]).encode()).hexdigest()[:16]
    if config and not (folder / "config.json").exists():
        fetch(config.source, folder / "config.json", sha256=config.sha256, backoff_s=backoff_s)
    path = folder / file.name
    if not path.exists():
        fetch(file.source, path, sha256=file.sha256, backoff_s=backoff_s)
    found = sha256_of_cached(path)
    if file.sha256 not in (None, found):
        raise CheckpointError(
            f"{path} is not {redact(file.url)}: its sha256 is {found}, expected {file.sha256}. "
            "Delete the file; it will be fetched again."
        )
    return path, found


def _config_beside(file: RemoteFile, backoff_s: float) -> RemoteFile | None:
    if not file.url.endswith(".safetensors"):  # also: a signed link is good for one object
        return None
    try:
        return locate(file.url.rsplit("/", 1)[0] + "/config.json", backoff_s)
    except _Absent:
        return None


class _Absent(CheckpointError):
    """There is nothing, or nothing that may be read."""


def _with_retries(url: str, ask: Callable[[], T], backoff_s: float) -> T:
    for attempt in count(1):
        try:
            return ask()
        except FileNotFoundError:
            hidden = ", and HF_TOKEN if the repository is private or gated" if scheme_of(url) == "hf" else ""
            raise _Absent(f"cannot fetch {redact(url)}: there is no such object; check the address{hidden}") from None
        except (StorageError, OSError, http.client.HTTPException) as error:
            if _is_final(error):
                raise _Absent(f"cannot fetch the model {error}") from None
            cause = error
        if (pause := pause_after(attempt, cause, backoff_s)) is None:
            break
        time.sleep(pause)
    reason = str(cause).removeprefix(f"{redact(url)}: ")
    raise CheckpointError(
        f"cannot fetch {redact(url)}: {redact(reason)}; check the address and the network, then run again"
    )


def _is_final(error: BaseException) -> bool:
    cause = error.__cause__
    return isinstance(cause, PermissionError) or type(cause).__name__ in _WITHOUT_CREDENTIALS


def _info(fs: AbstractFileSystem, path: str, url: str) -> Mapping[str, Any]:
    with translated(url):
        info: Mapping[str, Any] = fs.info(path, **({"refresh": True} if scheme_of(url) in ("s3", "hf") else {}))
    return info


def _version(info: Mapping[str, Any]) -> str | None:
    for key in _VERSIONS:
        if value := info.get(key):
            return value.isoformat() if isinstance(value, datetime) else str(value)
    return None


def _lfs_sha256(info: Mapping[str, Any]) -> str | None:
    """Of a large file in a Hugging Face repository."""
    lfs = info.get("lfs")
    found = lfs.get("sha256") if isinstance(lfs, Mapping) else getattr(lfs, "sha256", None)
    return str(found) if found else None


def _locate_http(url: str) -> RemoteFile:
    """Asks for the first byte only: a signed link is good for GET and not for HEAD."""
    request = urllib.request.Request(url, headers={"Range": "bytes=0-0"})  # noqa: S310 (http or https)
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as answer:  # noqa: S310
            headers, partial = answer.headers, answer.status == 206
    except urllib.error.HTTPError as error:
        if error.code in (404, 410):
            raise FileNotFoundError(url) from None
        if error.code == 416:
            raise _Absent(f"cannot fetch {redact(url)}: it is empty; check the address") from None
        try:
            raise_if_final(url, error)
        except CheckpointError as final:
            raise _Absent(str(final)) from None
        raise
    length = headers["Content-Range"].rsplit("/", 1)[-1] if partial else headers["Content-Length"]
    size = int(length) if length and length.isdigit() else None
    version, strong = _version(headers), not (headers["ETag"] or "").startswith("W/")
    validator = (headers["ETag"] if strong else None) or headers["Last-Modified"]
    source = HttpSource(url, size, validator, resumable=partial and validator is not None)
    return RemoteFile(url, size, version, None, source)


@dataclass(frozen=True, slots=True)
class _StoreSource:
    """An object in a store, read in ranges."""

    url: str
    size: int
    version: str | None
    fs: AbstractFileSystem
    path: str

    @contextmanager
    def open(self, start: int) -> Iterator[tuple[int, Iterator[bytes]]]:
        with ThreadPoolExecutor(_PIECES_AHEAD, thread_name_prefix="checkpoint") as readers:
            try:
                yield start, self._blocks(start, readers)
            finally:
                readers.shutdown(wait=False, cancel_futures=True)

    def _blocks(self, start: int, readers: ThreadPoolExecutor) -> Iterator[bytes]:
        starts = list(range(start, self.size, _PIECE))
        pending = [readers.submit(self._read, at) for at in starts[:_PIECES_AHEAD]]
        for following in [*starts[_PIECES_AHEAD:], *[None] * len(pending)]:
            block = pending.pop(0).result()
            if following is not None:
                pending.append(readers.submit(self._read, following))
            yield block
        try:
            now = _info(self.fs, self.path, self.url)
        except FileNotFoundError:
            now = {}
        if _version(now) != self.version or now.get("size") != self.size:  # pieces of two objects make none
            raise Replaced(f"cannot fetch {redact(self.url)}: it was replaced while it was fetched; run again")

    def _read(self, start: int) -> bytes:
        end = min(start + _PIECE, self.size)
        try:
            with translated(self.url):
                data: bytes = self.fs.cat_file(self.path, start=start, end=end)
        except FileNotFoundError:
            raise Replaced(f"cannot fetch {redact(self.url)}: it was deleted while it was fetched") from None
        except StorageError as error:
            if _is_final(error):
                raise CheckpointError(f"cannot fetch the model {error}") from None
            raise
        if len(data) != end - start:
            raise OSError(f"{len(data):,} bytes came instead of {end - start:,}")
        return data
