"""The records that make a dataset: one for each committed slice (`manifest.py` gathers them at the end).

Readers trust these and nothing else. A file that no record names is garbage of a lost race or a crash, never damage.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, fields
from sys import intern
from types import MappingProxyType
from typing import Any

from data_engine.dataset.schema import SCHEMA_VERSION, check_version
from data_engine.errors import DatasetError
from data_engine.storage import join, list_names, read_bytes

PLAN_FILE = "_plan/job.json"
COMMITS_FOLDER = "_commits"

_READERS = 32
_READ_AHEAD = 4096  # records whose reading is ordered at once


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A data file: its path below the dataset's root and what it must contain."""

    file: str
    size: int
    sha256: str
    rows: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """Counts that add up: of a slice, of a shard, of a dataset."""

    images: int = 0
    failed: int = 0
    masks: int = 0
    candidates: int = 0
    rejected_iou: int = 0
    rejected_stability: int = 0
    rejected_edge: int = 0
    rejected_nms: int = 0
    rejected_area: int = 0
    errors: dict[str, int] = field(default_factory=dict)  # failed images by error type

    def __add__(self, other: Totals) -> Totals:
        return Totals.sum((self, other))

    @classmethod
    def sum(cls, parts: Iterable[Totals]) -> Totals:
        counts = dict.fromkeys(_COUNTED, 0)
        errors: dict[str, int] = {}
        for part in parts:
            for name in _COUNTED:
                counts[name] += getattr(part, name)
            for kind, count in part.errors.items():
                errors[kind] = errors.get(kind, 0) + count
        return cls(errors=dict(sorted(errors.items())), **counts)


_COUNTED = [field.name for field in fields(Totals) if field.name != "errors"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitRecord:
    """One slice of a shard, committed. Its object in the store is the commit: there or not there."""

    fingerprint: str  # of the plan
    shard: str
    slice: int  # 0, 1, ... within the shard
    first_image: int  # position in the shard of the slice's first image
    final: bool  # no slice of this shard follows
    images: Part
    masks: Part
    rejects: Part | None = None  # where images of the slice keep what the filters rejected
    totals: Totals
    owner: str  # unique to the process that wrote it: tells a lost race from a lost answer
    attempt: str  # in the names of the files
    next_offset: int | None = None  # where in a tar the next image starts
    damage: dict[str, Any] | None = None  # why the shard ended early: reason, offset, last_key, message
    timings: dict[str, float] = field(default_factory=dict)  # seconds a stage
    code_version: str = ""
    committed_at: str = ""  # UTC, ISO 8601

    @property
    def file(self) -> str:
        return commit_file(self.shard, self.slice)

    @property
    def parts(self) -> list[Part]:
        """The data files of the slice."""
        return [part for part in (self.images, self.masks, self.rejects) if part is not None]

    def to_json(self) -> bytes:
        values = asdict(self)
        if self.rejects is None:
            del values["rejects"]  # then the record is one that older versions read
        return (json.dumps({"schema_version": SCHEMA_VERSION, **values}, indent=1) + "\n").encode()

    @classmethod
    def from_json(cls, data: bytes, where: str) -> CommitRecord:
        """Raises DatasetError for anything but a whole record."""
        return cls.from_fields(parse_object(data, where), where)

    @classmethod
    def from_fields(cls, values: dict[str, Any], where: str) -> CommitRecord:
        """The record with these fields, parts and totals being dictionaries. Strings that many share are kept once."""
        try:
            for name in ("fingerprint", "shard", "owner", "code_version"):
                if name in values:
                    values[name] = intern(values[name])
            values["timings"] = {intern(stage): seconds for stage, seconds in values.get("timings", {}).items()}
            images, masks = Part(**values.pop("images")), Part(**values.pop("masks"))
            rejects = values.pop("rejects", None)
            if rejects is not None:
                values["rejects"] = Part(**rejects)
            return cls(images=images, masks=masks, totals=Totals(**values.pop("totals")), **values)
        except (AttributeError, KeyError, TypeError) as error:
            raise DatasetError(f"{where} is not a commit record: {error}") from None


def commit_file(shard: str, slice_index: int) -> str:
    """Path of a slice's commit record below the dataset's root."""
    return f"{COMMITS_FOLDER}/{shard}-{slice_index:05d}.json"


def read_commits(
    root: str,
    known: Mapping[str, CommitRecord] = MappingProxyType({}),
    on_read: Callable[[int, int], None] = lambda read, total: None,
) -> list[CommitRecord]:
    """Every commit record, by shard and slice.

    known: records by `file` that need not be read again, since a commit never changes. on_read is told how many of
    how many others have been read.
    """
    names = [name for name in list_names(join(root, COMMITS_FOLDER)) if name.endswith(".json")]
    files = [f"{COMMITS_FOLDER}/{name}" for name in names]
    records = [known[file] for file in files if file in known]
    unread = [file for file in files if file not in known]
    with ThreadPoolExecutor(_READERS) as pool:
        for start in range(0, len(unread), _READ_AHEAD):
            records += pool.map(lambda file: read_commit(join(root, file)), unread[start : start + _READ_AHEAD])
            on_read(min(start + _READ_AHEAD, len(unread)), len(unread))
    return sorted(records, key=lambda record: (record.shard, record.slice))


def read_commit(uri: str) -> CommitRecord:
    """One record. Raises DatasetError for anything but a whole one, FileNotFoundError and StorageError."""
    return CommitRecord.from_json(read_bytes(uri), uri)


def parse_object(data: bytes, where: str) -> dict[str, Any]:
    """A JSON object with a schema version that can be read, without it. Raises DatasetError naming `where`."""
    try:
        values = json.loads(data)
    except ValueError:
        raise DatasetError(f"{where} is damaged: it is not JSON ({len(data)} bytes)") from None
    if not isinstance(values, dict):
        raise DatasetError(f"{where} is damaged: it is not a JSON object")
    check_version(str(values.pop("schema_version", "")), where)
    return values
