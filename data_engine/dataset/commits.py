"""The records that make a dataset: one for each committed slice, one manifest at the end.

Readers trust these and nothing else. A file that no record names is garbage of a lost race or a crash, never damage.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any

from data_engine.dataset.schema import SCHEMA_VERSION, check_version
from data_engine.errors import DatasetError
from data_engine.storage import join, list_names, read_bytes

PLAN_FILE = "_plan/job.json"
COMMITS_FOLDER = "_commits"
MANIFEST_FILE = "_manifest.json"


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
        mine, theirs = asdict(self), asdict(other)
        errors = dict(sorted((Counter(mine.pop("errors")) + Counter(theirs.pop("errors"))).items()))
        return Totals(errors=errors, **{name: mine[name] + theirs[name] for name in mine})

    @classmethod
    def sum(cls, parts: Iterable[Totals]) -> Totals:
        total = cls()
        for part in parts:
            total = total + part
        return total


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

    def to_json(self) -> bytes:
        return (json.dumps({"schema_version": SCHEMA_VERSION, **asdict(self)}, indent=1) + "\n").encode()

    @classmethod
    def from_json(cls, data: bytes, where: str) -> CommitRecord:
        """Raises DatasetError for anything but a whole record."""
        return cls._from_dict(_parse(data, where), where)

    @classmethod
    def _from_dict(cls, fields: dict[str, Any], where: str) -> CommitRecord:
        fields.pop("schema_version", None)
        try:
            images, masks, totals = (
                Part(**fields.pop("images")),
                Part(**fields.pop("masks")),
                Totals(**fields.pop("totals")),
            )
            return cls(images=images, masks=masks, totals=totals, **fields)
        except (KeyError, TypeError) as error:
            raise DatasetError(f"{where} is not a commit record: {error}") from None


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """The dataset is complete, and this is all of it."""

    fingerprint: str
    totals: Totals
    commits: tuple[CommitRecord, ...]
    owner: str
    created_at: str = ""

    def to_json(self) -> bytes:
        return (json.dumps({"schema_version": SCHEMA_VERSION, **asdict(self)}) + "\n").encode()

    @classmethod
    def from_json(cls, data: bytes, where: str) -> Manifest:
        fields = _parse(data, where)
        try:
            return cls(
                fingerprint=fields["fingerprint"],
                totals=Totals(**fields["totals"]),
                commits=tuple(CommitRecord._from_dict(record, where) for record in fields["commits"]),
                owner=fields["owner"],
                created_at=fields["created_at"],
            )
        except (KeyError, TypeError) as error:
            raise DatasetError(f"{where} is not a manifest: {error}") from None


def commit_file(shard: str, slice_index: int) -> str:
    """Path of a slice's commit record below the dataset's root."""
    return f"{COMMITS_FOLDER}/{shard}-{slice_index:05d}.json"


def read_commits(root: str) -> list[CommitRecord]:
    """Every commit record, by shard and slice."""
    names = [name for name in list_names(join(root, COMMITS_FOLDER)) if name.endswith(".json")]

    with ThreadPoolExecutor(16) as pool:
        records = pool.map(lambda name: read_commit(join(root, COMMITS_FOLDER, name)), names)
        return sorted(records, key=lambda record: (record.shard, record.slice))


def read_commit(uri: str) -> CommitRecord:
    """One record. Raises DatasetError for anything but a whole one, FileNotFoundError and StorageError."""
    return CommitRecord.from_json(read_bytes(uri), uri)


def read_manifest(root: str) -> Manifest | None:
    """The manifest, or None while the dataset is incomplete."""
    uri = join(root, MANIFEST_FILE)
    try:
        return Manifest.from_json(read_bytes(uri), uri)
    except FileNotFoundError:
        return None


def _parse(data: bytes, where: str) -> dict[str, Any]:
    try:
        fields = json.loads(data)
    except ValueError:
        raise DatasetError(f"{where} is damaged: it is not JSON ({len(data)} bytes)") from None
    if not isinstance(fields, dict):
        raise DatasetError(f"{where} is damaged: it is not a JSON object")
    check_version(str(fields.pop("schema_version", "")), where)
    return fields
