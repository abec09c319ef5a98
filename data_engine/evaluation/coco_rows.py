"""COCO's JSON read in passing, row by row: gzipped or not, of any size, from this machine or a store."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Callable, Iterator, Mapping
from json import JSONDecodeError
from json.decoder import JSONDecoder
from typing import Any, TextIO

from data_engine.errors import SourceError, StorageError
from data_engine.images.settings import InputSettings
from data_engine.images.stream import InputFile
from data_engine.storage import is_local, redact

Taker = Callable[[dict[str, Any], str], None]  # gets a row, and the text that it was read from

_DECODER = JSONDecoder()
_BYTES = 1 << 20  # asked for at once
_PIECE = 1 << 20  # characters decoded at once, at least
_BLANKS = " \t\n\r"
_IN_NUMBERS = ("", *"0123456789.eE+-")  # "": at the end of a piece
_REMEDY = "give COCO's instances file"


def read_rows(uri: str, takers: Mapping[str, Taker]) -> None:
    """Hands every row of some lists at the top of a JSON file to the taker of its list, in the order of the file.

    Raises SourceError for a file that is not there, is damaged or lacks one of the lists, StorageError.
    """
    name = redact(uri)
    try:
        with InputFile(uri, InputSettings()) as file:
            complete = _read(_Text(_decoded(file)), takers)
    except FileNotFoundError:
        raise SourceError(f"{name} cannot be read: there is no such file; {_REMEDY}") from None
    except StorageError as error:
        if is_local(uri) and isinstance(error.__cause__, OSError):
            raise SourceError(f"{name} cannot be read: {error.__cause__.strerror}; {_REMEDY}") from None
        raise
    except (_NotJson, UnicodeDecodeError) as error:
        raise SourceError(f"{name} is not JSON ({error}); {_REMEDY}") from None
    except (EOFError, OSError, zlib.error) as error:
        raise SourceError(f"{name} cannot be unpacked ({error}); fetch it again") from None
    if not complete:
        lists = " and ".join(f"`{key}`" for key in takers)
        raise SourceError(f"{name} is not COCO's format: it needs the lists {lists}")


class _NotJson(ValueError):
    pass


def _decoded(file: InputFile) -> TextIO:
    buffered = io.BufferedReader(file, _BYTES)
    packed = buffered.peek(2).startswith(b"\x1f\x8b")
    return io.TextIOWrapper(gzip.GzipFile(fileobj=buffered) if packed else buffered, encoding="utf-8-sig")


def _read(text: _Text, takers: Mapping[str, Taker]) -> bool:
    """Whether all the lists were there, and were lists of objects."""
    if text.next() != "{":
        text.value()
        return False
    seen = set()
    for _ in text.items("{", "}"):
        key, _source = text.value()
        text.take(":")
        if key not in takers:
            text.value()
            continue
        if text.next() != "[":
            return False
        seen.add(key)
        for _ in text.items("[", "]"):
            row, source = text.value()
            if not isinstance(row, dict):
                return False
            takers[key](row, source)
    text.end()
    return seen == takers.keys()


class _Text:
    """A JSON text, of which a piece is held."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._piece = ""
        self._at = 0
        self._before = 0  # characters before the piece

    def next(self) -> str:
        """The next character that is no blank; "" at the end."""
        while True:
            while self._at < len(self._piece) and self._piece[self._at] in _BLANKS:
                self._at += 1
            if self._at < len(self._piece):
                return self._piece[self._at]
            if not self._more():
                return ""

    def take(self, wanted: str) -> str:
        """Goes beyond the next character, which has to be one of these."""
        found = self.next()
        if not found or found not in wanted:
            raise _NotJson(f"expecting {' or '.join(map(repr, wanted))} at character {self._before + self._at:,}")
        self._at += 1
        return found

    def items(self, first: str, last: str) -> Iterator[None]:
        """Stops before every item of a list or object; the caller takes it."""
        self.take(first)
        if self.next() == last:
            self.take(last)
            return
        while True:
            yield
            if self.take("," + last) == last:
                return

    def value(self) -> tuple[Any, str]:
        """Goes beyond the next value, whatever it is: what it means, and its text."""
        self.next()
        while True:
            try:
                value, end = _DECODER.raw_decode(self._piece, self._at)
            except JSONDecodeError as error:
                if self._more():
                    continue
                raise _NotJson(f"{error.msg} at character {self._before + error.pos:,}") from None
            if self._piece[end : end + 1] in _IN_NUMBERS and self._more():  # it may be the beginning of a number
                continue
            text = self._piece[self._at : end]
            self._at = end
            return value, text

    def end(self) -> None:
        if self.next():
            raise _NotJson(f"extra data at character {self._before + self._at:,}")

    def _more(self) -> bool:
        """Reads on. What is held grows by half at least, so that a large value is not decoded again and again."""
        rest = self._piece[self._at :]
        found = self._file.read(max(_PIECE, len(rest)))
        self._before += self._at
        self._piece, self._at = rest + found, 0
        return bool(found)
