"""Which files an input consists of: one file, a folder, a glob, or braces that stand for several of these."""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from fsspec import AbstractFileSystem

from data_engine.errors import SourceError
from data_engine.images.fetch import local_version, version
from data_engine.images.hosts import input_filesystem
from data_engine.images.patterns import expand_braces, has_pattern, root_of
from data_engine.images.retry import with_retries
from data_engine.images.settings import InputSettings
from data_engine.images.shard import existing_path, valid_text
from data_engine.storage import filesystem, is_local, local_path, redact, scheme_of

HIDDEN = "hidden"
LINKS = "links to folders"
_S3_PAGE = 1000  # the most that it gives

_Entry = tuple[str, "int | None", "str | None"]  # (path or URI, size, version)


@dataclass(frozen=True, slots=True)
class FoundFile:
    """A file of an input. `name` is its path below the listing's root, and what images are named by."""

    name: str
    uri: str
    size: int | None
    etag: str | None


@dataclass(slots=True)
class Found:
    """All files of an input, sorted by name, and how many others were passed over, by reason."""

    files: list[FoundFile] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)


def find_files(uri: str, settings: InputSettings) -> Found:
    """Every visible file that `uri` stands for. Raises SourceError, UsageError, StorageError."""
    found = Found()
    filesystem(uri)  # refuses what is not supported, also where it looks like a path
    if is_local(uri):
        uri = str(local_path(uri)) + ("/" if uri.endswith("/") else "")
        if _exists(uri):  # a name with brackets or braces in it
            root = uri.rstrip("/") + "/" if Path(uri).is_dir() else uri[: uri.rfind("/") + 1]
            files: Iterable[_Entry] = _local_files([uri], settings, found.skipped)
        else:
            root = root_of(uri)
            files = _local_files(_local_matches(uri), settings, found.skipped)
    else:
        root, files = _remote_files(uri, settings)
    by_uri: dict[str, FoundFile] = {}
    for path, size, etag in files:
        name = path[len(root) :] if path.startswith(root) else path.rsplit("/", 1)[-1]
        if scheme_of(uri) in ("http", "https"):
            name = name.partition("?")[0]  # the query may be a signature
        if any(part.startswith(".") or part == "__MACOSX" for part in name.split("/")):
            found.skipped[HIDDEN] += 1
            continue
        by_uri[path] = FoundFile(valid_text(name), valid_text(path), size, etag)
    found.files = sorted(by_uri.values(), key=lambda file: file.name)
    return found


# ---- this machine ---------------------------------------------------------------------------------------------------


def _local_matches(uri: str) -> list[str]:
    matches: list[str] = []
    missing: list[str] = []
    for pattern in expand_braces(uri):
        if has_pattern(pattern) and not _exists(pattern):
            fs, path = input_filesystem(pattern, InputSettings())
            matches += fs.glob(path)
        elif _exists(pattern):
            matches.append(pattern)
        else:
            missing.append(pattern)
    _refuse_missing(uri, missing)
    return matches


def _exists(path: str) -> bool:
    try:
        return existing_path(Path(path)).exists()
    except (OSError, ValueError):  # too long, a NUL in it
        return False


def _local_files(paths: Iterable[str], settings: InputSettings, skipped: Counter[str]) -> Iterator[_Entry]:
    """The files among `paths` and in the folders among them. Links to files are followed, links to folders in them are
    not, and counted in `skipped`."""
    for name in paths:
        path = existing_path(Path(name))
        if path.is_dir():
            for folder, subfolders, files in os.walk(path, onerror=_refuse):
                if not settings.recursive:
                    subfolders.clear()
                subfolders[:] = [sub for sub in subfolders if not sub.startswith(".")]
                links = sum(os.path.islink(os.path.join(folder, sub)) for sub in subfolders)  # noqa: PTH114, PTH118
                skipped.update({LINKS: links} if links else {})
                for file in files:
                    yield from _local_file(os.path.join(folder, file))  # noqa: PTH118 (millions of them)
        else:
            yield from _local_file(str(path))


def _local_file(path: str) -> Iterator[_Entry]:
    try:
        status = os.stat(path)  # noqa: PTH116
    except OSError:  # a dangling link, or gone again: reading will tell
        yield path, None, None
        return
    if stat.S_ISREG(status.st_mode):
        yield path, status.st_size, local_version(status)


def _refuse(error: OSError) -> None:
    raise SourceError(f"{error.filename}: cannot be listed ({error.strerror}); images in it would be missed") from None


# ---- stores and servers ---------------------------------------------------------------------------------------------


def _remote_files(uri: str, settings: InputSettings) -> tuple[str, list[_Entry]]:
    """(the root that names are below, files)."""
    root = root_of(uri)
    patterns = expand_braces(uri)
    if patterns == [uri] and not has_pattern(uri):
        folder = uri.rstrip("/") + "/"
        entries = _remote_match(uri, settings)
        if entries is None:
            raise SourceError(f"{redact(uri)}: there is nothing there")
        is_file = len(entries) == 1 and entries[0][0] == _canonical(uri, settings)
        return _canonical(root if is_file else folder, settings), entries
    with ThreadPoolExecutor(settings.fetch_threads, thread_name_prefix="list") as pool:
        matched = list(pool.map(lambda pattern: _remote_match(pattern, settings), patterns))
    _refuse_missing(uri, [pattern for pattern, entries in zip(patterns, matched, strict=True) if entries is None])
    return _canonical(root, settings), [entry for entries in matched for entry in entries or ()]


def _remote_match(uri: str, settings: InputSettings) -> list[_Entry] | None:
    """The files of one URL or glob; None if there is nothing."""
    fs, path = input_filesystem(uri, settings)
    depth = None if settings.recursive else 1

    def below(folder: str) -> list[dict[str, Any]]:
        if "s3" in fs.protocol:
            return [{"name": folder, "type": "directory"}]  # page by page, below
        return list(fs.find(folder, detail=True, maxdepth=depth).values())

    def look() -> list[dict[str, Any]] | None:
        if has_pattern(uri):
            infos: list[dict[str, Any]] = []
            for info in fs.glob(path, detail=True).values():
                infos += below(info["name"]) if info["type"] == "directory" else [info]
            return infos
        if scheme_of(uri) in ("http", "https") and uri.endswith("/"):
            return below(path)
        try:
            info = fs.info(path)
        except FileNotFoundError as error:
            if error.__cause__ is not None:
                raise
            return None
        return below(path) if info["type"] == "directory" else [info]

    try:
        infos = with_retries(uri, look)
    except FileNotFoundError:
        return None
    if infos is None:
        return None
    entries: list[_Entry] = []
    for info in infos:
        if info["type"] == "directory":
            entries += _s3_folder(fs, info["name"], settings.recursive)
        elif info["type"] == "file" and not info["name"].endswith("/"):
            entries.append((_uri(uri, info["name"]), info.get("size"), version(info)))
    return entries


def _s3_folder(fs: AbstractFileSystem, folder: str, recursive: bool) -> Iterator[_Entry]:
    """The objects of a folder in S3, of which there may be millions: a page that fails is asked for again, and not all
    before it, and what s3fs would keep of each is not kept."""
    bucket, key, _ = fs.split_path(folder)
    prefix = f"{key.rstrip('/')}/" if key.strip("/") else ""
    asked = {"Bucket": bucket, "Prefix": prefix, "MaxKeys": _S3_PAGE, **({} if recursive else {"Delimiter": "/"})}
    while True:
        page = with_retries(f"s3://{folder}", partial(fs.call_s3, "list_objects_v2", **asked))
        for found in page.get("Contents", ()):
            if not found["Key"].endswith("/"):
                yield f"s3://{bucket}/{found['Key']}", found["Size"], version(found)
        if not page.get("IsTruncated"):
            return
        asked["ContinuationToken"] = page["NextContinuationToken"]


def _canonical(uri: str, settings: InputSettings) -> str:
    """`uri` spelt as a listing spells it."""
    _, path = input_filesystem(uri, settings)
    return _uri(uri, path) + ("/" if uri.endswith("/") and not path.endswith("/") else "")


def _uri(like: str, path: str) -> str:
    scheme = scheme_of(like)
    return path if scheme in ("http", "https") else f"{scheme}://{path}"


def _refuse_missing(uri: str, missing: list[str]) -> None:
    if missing:
        more = f" and {len(missing) - 1:,} more" if len(missing) > 1 else ""
        raise SourceError(f"{redact(uri)}: {redact(missing[0])}{more} does not exist")
