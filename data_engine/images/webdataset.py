"""Tars of images, WebDataset's and any other, read as a stream and trusted in nothing.

The standard library's reader ends without an error where an archive is cut between members or a header is damaged, and
the rest of the shard would be lost in silence. This one requires every header's checksum, and at the end the two zero
blocks that the format ends with; without them the archive is damaged, which is reported after all that was whole.

Gzipped tars (.tar.gz, .tgz) are read too, but cannot be entered in the middle. Links, folders and devices are skipped.
"""

from __future__ import annotations

import gzip
import posixpath
import re
import tarfile
import zlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from data_engine.images.settings import InputSettings
from data_engine.images.shard import (
    DamageReason,
    EncodedImage,
    ImageError,
    Shard,
    ShardDamaged,
    UniqueIds,
    refuse_if_changed,
    valid_text,
)
from data_engine.images.stream import InputFile
from data_engine.storage import redact

_BLOCK = 512
_MAX_EXTENDED_HEADER = 1 << 20  # bytes of long names and PAX records before one member
_EXTENDED = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
_PAX_SIZE = re.compile(r"[0-9]{1,18}")
_WITHOUT_DATA = (
    tarfile.LNKTYPE,
    tarfile.SYMTYPE,
    tarfile.CHRTYPE,
    tarfile.BLKTYPE,
    tarfile.DIRTYPE,
    tarfile.FIFOTYPE,
)


def read_tar(
    shard: Shard, settings: InputSettings, start: int = 0, offset: int | None = None, seen_ids: Collection[str] = ()
) -> Iterator[EncodedImage]:
    """The images of a tar, from number `start` on; `offset`, if known, is the `next_offset` of the one before it.

    With `offset`, `seen_ids` are the ids before it. Raises ShardDamaged after the last whole image, FileNotFoundError
    and StorageError.
    """
    with InputFile(shard.location, settings) as file:
        refuse_if_changed(shard, file.size, file.version)
        zipped = offset is None and file.read(2) == b"\x1f\x8b"
        file.seek(0)
        stream = gzip.GzipFile(fileobj=file) if zipped else file
        tar = TarStream(shard, stream, None if zipped else file.size, offset or 0)
        ids = UniqueIds(seen_ids if offset is not None else ())
        index = start if offset is not None else 0
        for member in tar.members():
            name = normalised(member.name)
            if not settings.is_image(name):
                continue
            image_id = ids.claim(f"{shard.prefix}/{name}")
            tar.last_key = image_id
            if index >= start:
                error = _refused(member, settings)
                data = tar.data(member) if error is None else None
                yield EncodedImage(
                    index, image_id, f"{redact(shard.uri)}#{name}", data, error, None if zipped else member.next
                )
            index += 1


def normalised(name: str) -> str:
    """A member's name as part of an id: valid UTF-8, relative, without . and .. and empty parts."""
    return posixpath.normpath("/" + valid_text(name)).lstrip("/")


def _refused(member: _Member, settings: InputSettings) -> ImageError | None:
    if member.sparse:
        return ImageError("unsupported_format", "a sparse tar member is not read")
    if member.size == 0:
        return ImageError("empty", "0 bytes")
    if member.size > settings.max_image_bytes:
        return ImageError(
            "too_large", f"{member.size:,} bytes, above input.max_image_bytes = {settings.max_image_bytes:,}"
        )
    return None


@dataclass(frozen=True, slots=True)
class _Member:
    """A regular file in a tar."""

    name: str
    header: int
    start: int
    size: int
    sparse: bool

    @property
    def next(self) -> int:
        return _padded(self.start + self.size)


class TarStream:
    """The members of one archive in order. A member's data is read, if at all, before the next member is asked for."""

    def __init__(self, shard: Shard, stream: InputFile | gzip.GzipFile, size: int | None, offset: int = 0) -> None:
        self._shard = shard
        self._stream = stream
        self._size = size
        self._position = offset
        self._sparse_map_goes_on = False
        self.last_key: str | None = None
        if offset:
            stream.seek(offset)

    def members(self) -> Iterator[_Member]:
        while True:
            member, following = self._next_member()
            if following is None:
                return
            if member is not None:
                end = member.start + member.size
                if self._size is not None and end > self._size:
                    raise self._damage("truncated_tar", member.header, "it ends inside a member")
                yield member
            self._skip_to(following)

    def data(self, member: _Member) -> bytes:
        data = self._read(member.size)
        if len(data) < member.size:
            raise self._damage("truncated_tar", member.header, "it ends inside a member")
        return data

    def _next_member(self) -> tuple[_Member | None, int | None]:
        """(a file or None, where the next member begins or None at the end of the archive)."""
        header = self._position
        long_name: str | None = None
        records: dict[str, str] = {}
        extended = 0
        while True:
            info, at = self._header(header if not extended else None)
            if info is None and extended:
                raise self._damage("corrupt_tar", header, "a long name or PAX header without its member")
            if info is None:
                return None, None
            if info.type == tarfile.XGLTYPE:
                # Ignored: what a global header says would depend on where reading began.
                return None, _padded(self._position + info.size)
            if info.type not in _EXTENDED:
                break
            extended += _BLOCK + info.size
            if extended > _MAX_EXTENDED_HEADER:
                raise self._damage("corrupt_tar", at, f"a header of {info.size:,} bytes")
            text = self._read(_padded(info.size))
            if len(text) < _padded(info.size):
                raise self._damage("truncated_tar", header, "it ends inside a header")
            text = text[: info.size]
            if info.type == tarfile.GNUTYPE_LONGNAME:
                long_name = text.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")
            elif info.type != tarfile.GNUTYPE_LONGLINK:
                records.update(self._pax_records(text, at))
        return self._member(info, header, long_name, records)

    def _member(
        self, info: tarfile.TarInfo, header: int, long_name: str | None, records: dict[str, str]
    ) -> tuple[_Member | None, int]:
        size = info.size
        if "size" in records:
            size = int(records["size"]) if _PAX_SIZE.fullmatch(records["size"]) else -1
        if size < 0:
            raise self._damage("corrupt_tar", header, "a member of negative size")
        sparse = info.type == tarfile.GNUTYPE_SPARSE or any(key.startswith("GNU.sparse.") for key in records)
        if info.type == tarfile.GNUTYPE_SPARSE:
            self._skip_sparse_map(header)
        if info.type in _WITHOUT_DATA:
            return None, self._position
        following = _padded(self._position + size)
        if not info.isreg():  # volume labels and what else there may be
            return None, following
        name = records.get("GNU.sparse.name") or records.get("path") or long_name or info.name
        return _Member(name, header, self._position, size, sparse), following

    def _header(self, member_at: int | None) -> tuple[tarfile.TarInfo | None, int]:
        """(the header at the present position or None at the proper end, its position)."""
        at = self._position
        block = self._read(_BLOCK)
        if len(block) < _BLOCK:
            begun = at if member_at is None else member_at
            raise self._damage(
                "truncated_tar", begun, "it has no end marker" if not block else "it ends inside a header"
            )
        if not any(block):
            self._check_end(at)
            return None, at
        try:
            info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except (tarfile.HeaderError, ValueError, OverflowError) as error:
            what = "not a tar archive" if at == 0 else f"a damaged header ({error})"
            raise self._damage("corrupt_tar", at, what) from None
        if info.size < 0:
            raise self._damage("corrupt_tar", at, "a member of negative size")
        if info.type == tarfile.GNUTYPE_SPARSE:
            self._sparse_map_goes_on = bool(block[482])
        return info, at

    def _check_end(self, at: int) -> None:
        """After the first zero block: a second one, and then nothing but padding."""
        second = self._read(_BLOCK)
        if len(second) < _BLOCK:
            raise self._damage("truncated_tar", at, "half of its end marker is missing")
        if any(second):
            raise self._damage("corrupt_tar", at, "a block of zeros instead of a header")
        while rest := self._read(1 << 16):
            if any(rest):
                raise self._damage(
                    "corrupt_tar",
                    self._position - len(rest),
                    "data after its end marker: more than one archive in a file",
                )

    def _skip_sparse_map(self, header: int) -> None:
        more = self._sparse_map_goes_on
        begin = self._position
        while more:
            if self._position - begin > _MAX_EXTENDED_HEADER:
                raise self._damage("corrupt_tar", header, "a sparse map without an end")
            block = self._read(_BLOCK)
            if len(block) < _BLOCK:
                raise self._damage("truncated_tar", header, "it ends inside a header")
            more = bool(block[504])

    def _pax_records(self, text: bytes, at: int) -> dict[str, str]:
        """ "27 path=some/long/name.jpg\\n" and so on -> {"path": "some/long/name.jpg"}."""
        records = {}
        text = text.rstrip(b"\0")
        begin = 0
        while begin < len(text):
            space = text.find(b" ", begin, begin + 8)
            length = text[begin:space] if space > 0 else b""
            end = begin + int(length) if length.isdigit() else 0
            equals = text.find(b"=", space, end)
            if not begin < end <= len(text) or equals <= space + 1 or text[end - 1 : end] != b"\n":
                raise self._damage("corrupt_tar", at, "a damaged PAX header")
            key, value = text[space + 1 : equals], text[equals + 1 : end - 1]
            records[key.decode("utf-8", "surrogateescape")] = value.decode("utf-8", "surrogateescape")
            begin = end
        return records

    def _read(self, size: int) -> bytes:
        try:
            data = self._stream.read(size) if size else b""
        except EOFError:
            raise self._damage("truncated_tar", self._position, "its gzip stream ends too early") from None
        except (gzip.BadGzipFile, zlib.error) as error:
            raise self._damage("corrupt_tar", self._position, f"its gzip stream is damaged ({error})") from None
        self._position += len(data)
        return data

    def _skip_to(self, position: int) -> None:
        if self._size is not None:
            self._stream.seek(position)
            self._position = position
            return
        while self._position < position:
            if not self._read(min(1 << 20, position - self._position)):
                return  # the next header will be missing

    def _damage(self, reason: DamageReason, offset: int, what: str) -> ShardDamaged:
        offset = offset if self._size is None else min(offset, self._size)
        after = f", after {self.last_key}" if self.last_key else ""
        return ShardDamaged(
            f"{redact(self._shard.uri)}: {what} (byte {offset:,}{after})", reason, offset, self.last_key
        )


def _padded(position: int) -> int:
    return -(-position // _BLOCK) * _BLOCK
