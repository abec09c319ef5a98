"""What people answered: small Parquet files beside the sample, only ever added to.

`_audits/<name>/answers/<time>-<session>-<number>.parquet` holds the answers that were given at once: one on the page,
a whole sheet when one is imported. No two writers ever use the same name, so that people answer side by side in any
store, and what is written stays. Of several answers of one person to one mask the last counts.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta, timezone
from threading import Lock

import pyarrow as pa

from data_engine.dataset.sealed_rows import read_rows, write_rows
from data_engine.errors import DatasetError, UsageError
from data_engine.human_audit.sample import audit_folder
from data_engine.pipeline.commit import put
from data_engine.storage import join, list_names, read_bytes

VERDICTS = ("accept", "reject", "unsure")
REASONS = {
    "not_an_object": "not an object",
    "wrong_boundary": "wrong boundary",
    "merges_several": "merges several",
    "part_missing": "part missing",
    "other": "other",
}
ANSWERS = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("mask_id", pa.int32(), nullable=False),
        pa.field("who", pa.string(), nullable=False),
        pa.field("verdict", pa.string(), nullable=False),
        pa.field("reason", pa.string()),
        pa.field("note", pa.string()),
        pa.field("seconds", pa.float32()),  # looked at before it was answered; null where nobody measured
        pa.field("answered_at", pa.timestamp("us", "UTC"), nullable=False),
        pa.field("session", pa.string(), nullable=False),
        pa.field("number", pa.int32(), nullable=False),  # of the answer in its session
    ]
)

_READERS = 32
_LONGEST_NAME, _LONGEST_NOTE = 100, 2000
_HALF_CHARACTER = re.compile("[\ud800-\udfff]")  # JSON can carry it, UTF-8 cannot

Key = tuple[str, int]  # image_id, mask_id


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A person's verdict on one mask. Raises UsageError for what cannot be one."""

    image_id: str
    mask_id: int
    who: str
    verdict: str
    reason: str | None = None
    note: str | None = None
    seconds: float | None = None
    answered_at: datetime
    session: str = ""
    number: int = 0

    def __post_init__(self) -> None:
        where = f"mask {self.mask_id} of {self.image_id}"
        if self.verdict not in VERDICTS:
            raise UsageError(f"{where}: verdict {self.verdict!r}: use {', '.join(VERDICTS)}")
        if self.reason is not None and self.reason not in REASONS:
            raise UsageError(f"{where}: reason {self.reason!r}: use {', '.join(REASONS)}, or leave it out")
        if self.note is not None and len(self.note) > _LONGEST_NOTE:
            raise UsageError(f"{where}: a note of {len(self.note):,} characters: at most {_LONGEST_NOTE:,}")
        if self.note is not None and _HALF_CHARACTER.search(self.note):
            raise UsageError(f"{where}: the note is not text: it holds half of a character")
        if self.seconds is not None and not 0 <= self.seconds < 86400:
            raise UsageError(f"{where}: {self.seconds} seconds: use 0 or more, and less than a day")
        checked_person(self.who)

    @property
    def key(self) -> Key:
        return self.image_id, self.mask_id


def checked_person(who: str) -> str:
    """A person's name as it is stored. Raises UsageError for none."""
    name = " ".join(who.split())
    if not name or len(name) > _LONGEST_NAME or not name.isprintable() or name != who:
        raise UsageError(f"{who!r} is no name: say who judges, in up to {_LONGEST_NAME} letters on one line")
    return name


def now() -> datetime:
    return datetime.now(timezone.utc)


def now_after(last: datetime | None) -> datetime:
    """Now, or just after the last answer where its clock was ahead: the later verdict of a person counts."""
    return now() if last is None else max(now(), last + timedelta(microseconds=1))


@dataclass
class AnswerSession:
    """One writer's answers. Safe among threads; each call leaves one more file, durable when it returns."""

    root: str  # of the dataset
    name: str  # of the audit
    session: str = field(default_factory=lambda: uuid.uuid4().hex)
    _number: int = 0
    _lock: Lock = field(default_factory=Lock)

    def add(self, answers: Sequence[Answer]) -> None:
        """Raises StorageError when they could not be stored."""
        with self._lock:
            first = self._number
            self._number += len(answers)
        rows = [{**asdict(answer), "session": self.session, "number": first + i} for i, answer in enumerate(answers)]
        file = f"{now():%Y%m%dT%H%M%S.%f}-{self.session}-{first:06d}.parquet"
        put(join(_folder(self.root, self.name), file), write_rows(rows, ANSWERS))


class AnswerBook:
    """All answers to an audit. Files that are known are not read again, since none ever changes."""

    def __init__(self, root: str, name: str) -> None:
        self._folder = _folder(root, name)
        self._known: dict[str, list[Answer]] = {}

    def read(self) -> list[Answer]:
        """Every answer ever given, by time. Raises DatasetError for a damaged file."""
        names = [name for name in list_names(self._folder) if name.endswith(".parquet")]
        unread = [name for name in names if name not in self._known]
        with ThreadPoolExecutor(_READERS) as pool:
            self._known.update(zip(unread, pool.map(self._read, unread), strict=True))
        answers = [answer for name in names for answer in self._known[name]]
        return sorted(answers, key=lambda answer: (answer.answered_at, answer.session, answer.number))

    def _read(self, name: str) -> list[Answer]:
        uri = join(self._folder, name)
        try:
            return [Answer(**row) for row in read_rows(read_bytes(uri), ANSWERS)]
        except (ValueError, UsageError) as error:
            raise DatasetError(f"{uri} does not hold answers: {error}") from None


def last_answers(answers: Iterable[Answer]) -> dict[str, dict[Key, Answer]]:
    """By person and mask, the answer that counts. answers: by time."""
    last: dict[str, dict[Key, Answer]] = {}
    for answer in answers:
        last.setdefault(answer.who, {})[answer.key] = answer
    return last


def _folder(root: str, name: str) -> str:
    return join(audit_folder(root, name), "answers")
