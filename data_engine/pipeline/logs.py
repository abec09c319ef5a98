"""Logs for people at a terminal and, as one JSON object a line, for whatever collects them on a cluster.

    configure_logging("INFO", as_json=True)
    with log_fields(run="1f3a", worker="gpu-0"):
        with log_fields(shard="00c1"):
            log.warning("slow")    # {"time": "...", "level": "WARNING", ..., "run": "1f3a", "shard": "00c1"}

Fields and threads. A new thread begins without fields, so hand it those of the moment, `Thread(target=carry_fields(f))`
or `pool.submit(carry_fields(f), x)`. `run` and `worker` are the process's own and need no handing over: a thread that
has none of its own, also one of a library that was started long before, shows those of the newest open `log_fields`.

Secrets are taken out of everything that is written. Libraries below WARNING stay silent at any level: botocore's debug
lines, for one, hold signed requests.
"""

from __future__ import annotations

import json
import logging
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import ParamSpec, TextIO, TypeVar

from data_engine.storage import redact

P = ParamSpec("P")
T = TypeVar("T")

FIELDS = ("run", "worker", "shard", "image_id")
_OF_THE_PROCESS = ("run", "worker")
_OWN_LOGGER = "data_engine"


@dataclass(slots=True, eq=False)
class _Block:
    """What one `log_fields` gives. A block that has ended gives nothing, wherever it may still be held."""

    fields: dict[str, str]
    ended: bool = False


_blocks: ContextVar[tuple[_Block, ...]] = ContextVar("log_fields", default=())
_open: list[_Block] = []  # of every thread, the newest last
_open_lock = threading.Lock()


@contextmanager
def log_fields(
    *, run: str | None = None, worker: str | None = None, shard: str | None = None, image_id: str | None = None
) -> Iterator[None]:
    """Puts fields into every line logged inside the block by this thread; None leaves what is there.

    In a generator, the fields stay while it is suspended, for its caller too.
    """
    given = {"run": run, "worker": worker, "shard": shard, "image_id": image_id}
    block = _Block({name: value for name, value in given.items() if value is not None})
    _blocks.set((*_blocks.get(), block))
    with _open_lock:
        _open.append(block)
    try:
        yield
    finally:
        with _open_lock:
            _open.remove(block)
        block.ended = True
        # Not by a token: a generator may end in another thread than it began in.
        _blocks.set(tuple(held for held in _blocks.get() if held is not block))


def current_fields() -> dict[str, str]:
    """The fields that a line logged here and now gets."""
    with _open_lock:
        everywhere = [item for block in _open for item in block.fields.items() if item[0] in _OF_THE_PROCESS]
    here = [item for block in _blocks.get() if not block.ended for item in block.fields.items()]
    return dict(everywhere + here)


def carry_fields(function: Callable[P, T]) -> Callable[P, T]:
    """`function` with the fields of this moment, in whatever thread it is called."""
    carried = (_Block(current_fields()),)

    def with_fields(*args: P.args, **kwargs: P.kwargs) -> T:
        before = _blocks.get()
        _blocks.set(carried)
        try:
            return function(*args, **kwargs)
        finally:
            _blocks.set(before)

    return with_fields


def configure_logging(level: int | str, as_json: bool) -> None:
    """Sends the package's logs from `level` on, and warnings of libraries, to stderr. Again: the last call counts."""
    root, own = logging.getLogger(), logging.getLogger(_OWN_LOGGER)
    own.setLevel(level)
    root.setLevel(max(own.level, logging.WARNING))
    for handler in [handler for handler in root.handlers if isinstance(handler, _Stderr)]:
        root.removeHandler(handler)
    new = _Stderr()
    new.setFormatter(JsonFormatter() if as_json else PlainFormatter())
    root.addHandler(new)
    logging.captureWarnings(as_json)


def logs_are_json() -> bool:
    """Whether `configure_logging` was last asked for JSON: what this process starts should write the same."""
    return any(isinstance(handler.formatter, JsonFormatter) for handler in logging.getLogger().handlers)


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time (UTC, milliseconds), level, logger, message, fields, and of an error its type,
    text and traceback."""

    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "time": _time(record),
            "level": record.levelname,
            "logger": record.name,
            "message": redact(_message(record)),
            **{name: redact(value) for name, value in _fields_of(record).items()},
        }
        if record.exc_info and record.exc_info[1] is not None:
            error = record.exc_info[1]
            entry["error_type"] = type(error).__name__
            entry["error"] = redact(_text(error))
            entry["traceback"] = redact(self.formatException(record.exc_info))
        if record.stack_info:
            entry["stack"] = redact(self.formatStack(record.stack_info))
        # ASCII: a file name that is no UTF-8 must not make a line that cannot be written.
        return json.dumps(entry)


class PlainFormatter(logging.Formatter):
    """Level, logger, message and the fields in brackets; then the traceback."""

    def format(self, record: logging.LogRecord) -> str:
        fields = " ".join(f"{name}={value}" for name, value in _fields_of(record).items())
        lines = [f"{record.levelname} {record.name}: {_message(record)}" + (f" [{fields}]" if fields else "")]
        if record.exc_info and record.exc_info[1] is not None:
            lines.append(self.formatException(record.exc_info))
        if record.stack_info:
            lines.append(self.formatStack(record.stack_info))
        return redact("\n".join(lines))


class _Stderr(logging.StreamHandler):
    """Writes to what sys.stderr is at the time: a progress bar replaces it while it is on screen."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:
        return sys.stderr


def _fields_of(record: logging.LogRecord) -> dict[str, str]:
    """The fields of the thread that logs, and over them those given with the line (`extra=`)."""
    given = {name: str(getattr(record, name)) for name in FIELDS if getattr(record, name, None) is not None}
    found = {**current_fields(), **given}
    return {name: found[name] for name in FIELDS if name in found}


def _time(record: logging.LogRecord) -> str:
    moment = datetime.fromtimestamp(record.created, timezone.utc)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except Exception:  # the arguments do not fit the text; what there is must not be lost for that
        return f"{record.msg!r} {record.args!r}"


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # an error that cannot even be shown is still one
        return f"<{type(error).__name__} without text>"
