"""Inputs that stand for several: brace ranges and globs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import islice

from data_engine.errors import UsageError
from data_engine.storage import redact

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_MOST = 1_000_000


def expand_braces(uri: str) -> list[str]:
    """ "a{00..02}.tar" -> a00.tar, a01.tar, a02.tar; "{x,y}.tar" -> x.tar, y.tar. Raises UsageError.

    Braces without a range or a comma stay as they are.
    """
    expanded = list(islice(_expanded(uri, uri), _MOST + 1))
    if len(expanded) > _MOST:
        raise UsageError(f"{redact(uri)}: more than {_MOST:,} files; use a manifest or a folder")
    return expanded


def has_pattern(uri: str) -> bool:
    """Whether `uri` has glob wildcards. A ? is none in a URL of the web, where a query begins with it."""
    wildcards = "*[" if uri.lower().startswith(("http://", "https://")) else "*?["
    return any(character in uri for character in wildcards)


def root_of(uri: str) -> str:
    """The folder that everything a pattern stands for lies below, with its last slash."""
    end = min((uri.find(character) for character in "*?[{" if character in uri), default=len(uri))
    return uri[: uri.rfind("/", 0, end) + 1]


def _expanded(uri: str, whole: str) -> Iterator[str]:
    for match in _BRACES.finditer(uri):
        choices = _choices(match[1], whole)
        if choices is not None:
            for choice in choices:
                for rest in _expanded(uri[match.end() :], whole):
                    yield uri[: match.start()] + choice + rest
            return
    yield uri


def _choices(text: str, whole: str) -> list[str] | None:
    bounds = _RANGE.fullmatch(text)
    if bounds is None:
        return text.split(",") if "," in text else None
    first, last = int(bounds[1]), int(bounds[2])
    if last < first or last - first >= _MOST:
        raise UsageError(f"{redact(whole)}: {{{text}}} is not a range from a lower to a higher number")
    width = len(bounds[1]) if bounds[1].startswith("0") or len(bounds[1]) == len(bounds[2]) else 0
    return [str(number).zfill(width) for number in range(first, last + 1)]
