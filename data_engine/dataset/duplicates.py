"""`_dedup/`: which images of a dataset are duplicates, as versions beside it. Its images and masks stay as they are.

A version is one small JSON object that names its tables with size and sha256. It is written last and only if the name
is free, so that a version is there as a whole or not at all. A table that no JSON names is garbage of a crash.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data_engine.dataset.commits import CommitRecord, Part, parse_object
from data_engine.dataset.schema import SCHEMA_VERSION
from data_engine.errors import DatasetError, UsageError
from data_engine.storage import filesystem, join, list_names, read_bytes, translated

DEDUP_FOLDER = "_dedup"

DUPLICATES = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("cluster_id", pa.int64(), nullable=False),
        pa.field("keep", pa.bool_(), nullable=False),
        pa.field("reason", pa.string()),  # exact | near | semantic; null for the image that is kept
        # Bits between its hash and the kept image's; semantic: 1 - cosine; null for the kept one.
        pa.field("distance", pa.float32()),
        pa.field("of", pa.string(), nullable=False),  # id of the kept image; its own for the kept one
    ]
)
MASK_DUPLICATES = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("mask_id", pa.int32(), nullable=False),
        pa.field("duplicate_of", pa.int32(), nullable=False),  # mask_id of the mask that stays
        pa.field("iou", pa.float32(), nullable=False),
    ]
)

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetState:
    """What of a dataset was there: enough to tell whether it has grown since."""

    fingerprint: str  # of the plan
    complete: bool
    slices: int
    images: int
    commits_sha256: str  # over the committed files, in the order of their names

    @classmethod
    def of(cls, fingerprint: str, complete: bool, records: Iterable[CommitRecord]) -> DatasetState:
        records = sorted(records, key=lambda record: record.file)
        digest = hashlib.sha256()
        for record in records:
            digest.update(f"{record.file} {record.images.sha256} {record.masks.sha256}\n".encode())
        images = sum(record.totals.images for record in records)
        return cls(
            fingerprint=fingerprint,
            complete=complete,
            slices=len(records),
            images=images,
            commits_sha256=digest.hexdigest(),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class DedupVersion:
    """What the JSON of a version holds."""

    version: str
    dataset: DatasetState
    parameters: dict[str, Any]
    counts: dict[str, int]
    duplicates: Part  # table with the schema DUPLICATES
    mask_duplicates: Part | None = None  # table with the schema MASK_DUPLICATES
    owner: str  # unique to the process that wrote it
    code_version: str = ""
    created_at: str = ""  # UTC, ISO 8601
    timings: dict[str, float] = field(default_factory=dict)  # seconds a stage

    def to_json(self) -> bytes:
        return (json.dumps({"schema_version": SCHEMA_VERSION, **asdict(self)}, indent=1) + "\n").encode()

    @classmethod
    def from_json(cls, data: bytes, where: str) -> DedupVersion:
        """Raises DatasetError for anything but a whole version."""
        fields = parse_object(data, where)
        try:
            state, duplicates = DatasetState(**fields.pop("dataset")), Part(**fields.pop("duplicates"))
            masks = fields.pop("mask_duplicates", None)
            return cls(dataset=state, duplicates=duplicates, mask_duplicates=Part(**masks) if masks else None, **fields)
        except (KeyError, TypeError) as error:
            raise DatasetError(f"{where} is not a version of duplicates: {error}") from None


def version_uri(root: str, version: str) -> str:
    """Raises UsageError for a name that is none."""
    if not _NAME.fullmatch(version):
        raise UsageError(f"{version!r} is no name of a version: use up to 64 letters, digits, dots, dashes")
    return join(root, DEDUP_FOLDER, f"{version}.json")


def version_names(root: str) -> list[str]:
    """Of all versions that are there, sorted by name."""
    names = list_names(join(root, DEDUP_FOLDER))
    return [name.removesuffix(".json") for name in names if name.endswith(".json") and not name.startswith(".")]


def read_version(root: str, version: str) -> DedupVersion:
    """Raises DatasetError when there is none of that name."""
    uri = version_uri(root, version)
    try:
        return DedupVersion.from_json(read_bytes(uri), uri)
    except FileNotFoundError:
        known = ", ".join(version_names(root)) or "none"
        raise DatasetError(
            f"{root} has no version {version!r} of duplicates (there are: {known}); `data-engine dedup` makes one"
        ) from None


def newest_version(root: str) -> DedupVersion | None:
    """The one created last, or None. Versions against another dataset leave out other images and do not count."""
    versions = [read_version(root, name) for name in version_names(root)]
    versions = [version for version in versions if not version.parameters.get("against")]
    return max(versions, key=lambda version: (version.created_at, version.version), default=None)


def read_table(root: str, part: Part, schema: pa.Schema) -> pa.Table:
    """A table of a version. Raises DatasetError if it is not the one that the version names."""
    uri = join(root, part.file)
    try:
        fs, path = filesystem(uri)
        with translated(uri), fs.open(path) as file:
            table = pq.ParquetFile(file, page_checksum_verification=True).read()
    except FileNotFoundError:
        raise DatasetError(f"{uri} is gone, a version of duplicates names it; make a new version") from None
    except (pa.ArrowInvalid, OSError) as error:
        raise DatasetError(f"{uri} is damaged ({error}); make a new version") from None
    if table.num_rows != part.rows or not table.schema.equals(schema):
        raise DatasetError(f"{uri} is not the table that its version names: {table.num_rows} rows, {part.rows} named")
    return table.replace_schema_metadata()
