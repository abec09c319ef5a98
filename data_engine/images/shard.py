"""What an input is made of: shards, the images that come out of them, and what can be wrong with either."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from data_engine.errors import DataEngineError, SourceError
from data_engine.signed_urls import unsigned
from data_engine.storage import redact

ShardKind = Literal["files", "tar", "parquet"]
DamageReason = Literal["truncated_tar", "corrupt_tar", "changed"]


class ImageError(DataEngineError):
    """Why one image cannot be had. `type` is one of

    empty, not_an_image, unsupported_format, truncated, corrupt, too_many_pixels, too_large, unreadable, null,
    out_of_memory.
    """

    def __init__(self, type: str, message: str) -> None:
        super().__init__(type, message)  # both, so that it can be pickled
        self.type = type
        self.message = message

    def __str__(self) -> str:
        return self.message

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ImageError) and self.args == other.args

    def __hash__(self) -> int:
        return hash(self.args)


class AccessDenied(ImageError):
    """The store did not let this image be read: the image's own rights, or all of ours, which the reader finds out."""


class Unreachable(ImageError):
    """Its web server said nothing: it may be down, or this machine without a network, which the reader finds out."""


class ShardDamaged(SourceError):
    """A shard that ends before its images do, or is not the one that was planned.

    Raised after every whole image before the damage was yielded.
    """

    def __init__(
        self, message: str, reason: DamageReason, offset: int | None = None, last_key: str | None = None
    ) -> None:
        """`offset`: byte at which the trouble begins. `last_key`: the last image before it."""
        super().__init__(message, reason, offset, last_key)
        self.message = message
        self.reason = reason
        self.offset = offset
        self.last_key = last_key

    def __str__(self) -> str:
        return self.message


@dataclass(frozen=True, slots=True)
class FileEntry:
    """An image that is a file of its own."""

    image_id: str
    uri: str
    size: int | None = None
    etag: str | None = None
    link: str | None = field(default=None, repr=False, compare=False)
    """The signed link that opens it, if it takes one: `uri` is then that link without its secrets. In memory alone; ""
    where a plan was read back and the link is not at hand."""

    @property
    def location(self) -> str:
        """What to open. Raises SourceError where the signed link is not at hand."""
        return _location(self.uri, self.link)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """A piece of the input that is worked on as one: a tar, row groups of a Parquet file, or some files."""

    id: str
    """16 hex digits, from what the shard contains and never from its position."""
    kind: ShardKind
    uri: str
    """The tar or Parquet file; for files, what they were listed from."""
    prefix: str = ""
    """What the ids of the images in a tar or Parquet file begin with: its path below the root of the listing."""
    size: int | None = None
    """Bytes to read, where the listing told."""
    etag: str | None = None
    """Changes with the content: the store's ETag, or the time of the last change."""
    images: int | None = None
    """How many images there are, where that is known without reading them."""
    files: tuple[FileEntry, ...] = ()
    row_groups: tuple[int, ...] | None = None
    link: str | None = field(default=None, repr=False, compare=False)
    """As in FileEntry, of a tar or Parquet file."""

    @property
    def location(self) -> str:
        """What to open. Raises SourceError where the signed link is not at hand."""
        return _location(self.uri, self.link)


@dataclass(frozen=True, slots=True)
class EncodedImage:
    """One image of a shard: its bytes as they were stored, or why there are none."""

    index: int
    image_id: str
    uri: str
    data: bytes | None = None
    error: ImageError | None = None
    next_offset: int | None = None
    """Where in a tar the next image is found; None where a shard cannot be entered in its middle."""


def signed_link(uri: str) -> str | None:
    """`uri` if it has secrets that `unsigned(uri)` has not."""
    return uri if unsigned(uri) != uri else None


def _location(uri: str, link: str | None) -> str:
    if link == "":
        raise SourceError(
            f"{redact(uri)}: it takes a signed link, and no plan keeps those; run the same command with the input "
            "(or the links in its manifest) signed anew"
        )
    return link or uri


def shard_id(kind: str, uri: str, content: Sequence[object] = ()) -> str:
    """16 hex digits that stand for the kind, the place and the list of files or row groups."""
    return hashlib.sha256(json.dumps([kind, uri, list(content)]).encode()).hexdigest()[:16]


def refuse_if_changed(shard: Shard, size: int | None, etag: str | None) -> None:
    """Raises ShardDamaged ("changed") unless the file is still as it was listed. What is not known is not compared."""
    compared = [("size", shard.size if shard.kind == "tar" else None, size), ("version", shard.etag, etag)]
    for what, then, now in compared:
        if then is not None and now is not None and then != now:
            raise ShardDamaged(
                f"{redact(shard.uri)} has changed since it was listed: its {what} was {then}, is {now}", "changed"
            )


class UniqueIds:
    """Gives every image an id of its own: the second "a.jpg" becomes "a.jpg#2", the third "a.jpg#3".

    The same names in the same order give the same ids, also when `seen` are the ids before a point to go on from.
    """

    def __init__(self, seen: Collection[str] = ()) -> None:
        self._seen = set(seen)
        self._next: dict[str, int] = {}

    def claim(self, name: str) -> str:
        unique = name
        number = self._next.get(name, 2)
        while unique in self._seen:
            unique = f"{name}#{number}"
            number += 1
        if unique != name:
            self._next[name] = number
        self._seen.add(unique)
        return unique


def valid_text(name: str) -> str:
    """`name` as valid UTF-8: bytes that were none are written as \\xNN, lone surrogates as \\uNNNN."""
    if name.isascii():
        return name  # and no copy: a manifest may have millions
    try:
        return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:
        return name.encode("utf-8", "backslashreplace").decode("utf-8")


def existing_path(path: Path) -> Path:
    """`path`, or where there is no such file the one whose name is not UTF-8 and which `valid_text` gave this name."""
    if "\\x" not in str(path) or path.exists():
        return path
    return Path(re.sub(r"\\x([89a-f][0-9a-f])", lambda match: chr(0xDC00 + int(match[1], 16)), str(path)))
