"""The stored sample of an audit: `_audits/<name>/sample.json` and `sample.parquet` beside the dataset.

`sample.json` is written first and only if absent: it decides which sample an audit of this name has. The table can be
drawn again from it, so that a crash between the two loses nothing.
"""

from __future__ import annotations

import hashlib
import io
import json
from dataclasses import asdict, dataclass
from functools import cached_property

import pyarrow as pa
import pyarrow.parquet as pq

from data_engine.dataset.commits import parse_object
from data_engine.dataset.schema import MASKS, SCHEMA_VERSION
from data_engine.errors import DatasetError
from data_engine.human_audit.design import Design, StratumCount, checked_name
from data_engine.human_audit.score_bins import ScoreBins
from data_engine.retry import retried
from data_engine.storage import filesystem, join, read_bytes, translated

AUDITS_FOLDER = "_audits"

OF_MASK = [field for field in MASKS if field.name not in ("image_id", "mask_id", "label", "label_score")]
SAMPLE = pa.schema(
    [
        pa.field("position", pa.int32(), nullable=False),  # in which they are shown: 0, 1, ...
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("mask_id", pa.int32(), nullable=False),
        pa.field("stability_bin", pa.int32(), nullable=False),
        pa.field("iou_bin", pa.int32(), nullable=False),
        pa.field("inclusion_probability", pa.float64(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),
        pa.field("sha256", pa.binary(32)),
        pa.field("shard", pa.string(), nullable=False),  # with slice and row: where in the dataset its image is
        pa.field("slice", pa.int32(), nullable=False),
        pa.field("row", pa.int32(), nullable=False),
        *OF_MASK,
    ]
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Population:
    """The run that the sample speaks of, as it was when it was drawn."""

    fingerprint: str  # of the dataset's plan
    complete: bool
    commits_sha256: str  # of the committed masks, all of them
    images: int
    images_with_masks: int
    masks: int
    cells: list[list[int]]  # masks by [stability bin][IoU bin]


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleFacts:
    """What `sample.json` holds."""

    name: str
    design: Design
    bins: ScoreBins
    population: Population
    strata: tuple[StratumCount, ...]
    images: int  # drawn, or images of the drawn masks
    masks: int
    sha256: str  # of the drawn image and mask ids, in order
    owner: str
    created_at: str  # UTC, ISO 8601
    code_version: str

    def to_json(self) -> bytes:
        return (json.dumps({"schema_version": SCHEMA_VERSION, **asdict(self)}, indent=1) + "\n").encode()

    @classmethod
    def from_json(cls, data: bytes, where: str) -> SampleFacts:
        """Raises DatasetError for anything but a whole one."""
        fields = parse_object(data, where)
        try:
            design = fields.pop("design")
            design.update({key: tuple(design[key]) for key in ("stratify", "stability_edges", "iou_edges")})
            return cls(
                design=Design(**design),
                bins=ScoreBins(**{score: tuple(edges) for score, edges in fields.pop("bins").items()}),
                population=Population(**fields.pop("population")),
                strata=tuple(StratumCount(**stratum) for stratum in fields.pop("strata")),
                **fields,
            )
        except (AttributeError, KeyError, TypeError) as error:
            raise DatasetError(f"{where} is not a sample of an audit: {error}") from None


@dataclass(frozen=True)
class Sample:
    """A sample as it is stored."""

    root: str  # of the dataset
    facts: SampleFacts
    masks: pa.Table  # SAMPLE

    @cached_property
    def keys(self) -> list[tuple[str, int]]:
        """(image_id, mask_id) by position."""
        return list(zip(self.masks["image_id"].to_pylist(), self.masks["mask_id"].to_pylist(), strict=True))


def audit_folder(root: str, name: str) -> str:
    return join(root, AUDITS_FOLDER, checked_name(name))


def read_sample(root: str, name: str) -> Sample | None:
    """The sample of this name, None if there is none. Raises DatasetError if its table is not the one it names."""
    folder = audit_folder(root, name)
    where = join(folder, "sample.json")
    try:
        facts = SampleFacts.from_json(read_bytes(where), where)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        table = pq.ParquetFile(io.BytesIO(read_bytes(join(folder, "sample.parquet")))).read()
    except FileNotFoundError:
        raise DatasetError(
            f"{join(folder, 'sample.parquet')} is missing: run the audit-sample command that drew it again"
        ) from None
    except pa.ArrowInvalid as error:
        raise DatasetError(f"{join(folder, 'sample.parquet')} is damaged: {error}") from None
    if digest(table) != facts.sha256:
        raise DatasetError(f"{join(folder, 'sample.parquet')} is not the sample that {where} names (sha256 differs)")
    return Sample(root, facts, table.replace_schema_metadata())


def audit_names(root: str) -> list[str]:
    """The audits of a dataset, by name."""
    uri = join(root, AUDITS_FOLDER)

    def folders() -> list[str]:
        fs, path = filesystem(uri)
        with translated(uri):
            try:
                entries = fs.ls(path, detail=True)
            except FileNotFoundError:
                return []
        return sorted(entry["name"].rstrip("/").rsplit("/", 1)[-1] for entry in entries if entry["type"] == "directory")

    return retried(folders)


def digest(table: pa.Table) -> str:
    """Of which masks, in which order; the same whatever version of Parquet's writer."""
    found = hashlib.sha256()
    for image_id, mask_id in zip(table["image_id"].to_pylist(), table["mask_id"].to_pylist(), strict=True):
        found.update(f"{image_id}\0{mask_id}\0".encode("utf-8", "surrogatepass"))
    return found.hexdigest()
