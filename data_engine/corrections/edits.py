"""What people did to masks: small Parquet files beside the dataset, only ever added to.

`_corrections/<time>-<session>-<number>.parquet` holds one edit. No two writers ever use the same name, so that people
correct side by side in any store, and what is written stays: to undo is one more edit. The dataset's own files are
never touched.
"""

from __future__ import annotations

import hashlib
import re
import uuid
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timezone
from threading import Lock

import pyarrow as pa

from data_engine.dataset.sealed_rows import read_rows, write_rows
from data_engine.errors import DatasetError
from data_engine.pipeline.commit import put
from data_engine.storage import join, list_names, read_bytes

CORRECTIONS_FOLDER = "_corrections"
ACTIONS = ("add", "replace", "delete", "done", "undo")
EDITS = pa.schema(
    [
        pa.field("edit_id", pa.string(), nullable=False),
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("action", pa.string(), nullable=False),  # add | replace | delete | done | undo
        pa.field("mask_id", pa.int32()),  # replace, delete: the mask of the dataset that goes
        pa.field("of", pa.string()),  # replace, delete: or the edit whose mask goes; undo: the edit that is taken back
        pa.field("n_masks", pa.int32(), nullable=False),  # that the dataset has of the image
        # How the new mask was made, in pixels of the image; null where there is none.
        pa.field("point_x", pa.list_(pa.float32())),
        pa.field("point_y", pa.list_(pa.float32())),
        pa.field("point_label", pa.list_(pa.int8())),  # SAM's: 0 background, 1 foreground, 2 and 3 corners of a box
        pa.field("answer", pa.int8()),  # which of the model's masks, the surest is 0
        pa.field("painted", pa.int32()),  # pixels in which a person then changed it with a brush; null: none was used
        pa.field("model", pa.string()),
        pa.field("model_sha256", pa.string()),
        # The new mask, as in the masks table.
        pa.field("height", pa.int32()),
        pa.field("width", pa.int32()),
        pa.field("bbox_x", pa.int32()),
        pa.field("bbox_y", pa.int32()),
        pa.field("bbox_w", pa.int32()),
        pa.field("bbox_h", pa.int32()),
        pa.field("area", pa.int32()),
        pa.field("predicted_iou", pa.float32()),  # what the model thought of it
        pa.field("stability_score", pa.float32()),
        pa.field("counts", pa.string()),
        pa.field("image_sha256", pa.binary(32)),
        pa.field("who", pa.string(), nullable=False),
        pa.field("edited_at", pa.timestamp("us", "UTC"), nullable=False),
        pa.field("seconds", pa.float32()),  # since the edit before, or since the image was shown
        pa.field("fingerprint", pa.string(), nullable=False),  # of the dataset's plan
        pa.field("code_version", pa.string(), nullable=False),
    ]
)

_READERS = 32
_STAMP = "%Y%m%dT%H%M%S.%f"
_STAMP_LENGTH = 22
_VERSION = re.compile(r"(\d{8}T\d{6}\.\d{6})-([0-9a-f]{12})")


@dataclass(frozen=True, slots=True, kw_only=True)
class Edit:
    """One row of EDITS."""

    edit_id: str = ""
    image_id: str
    action: str
    mask_id: int | None = None
    of: str | None = None
    n_masks: int
    point_x: list[float] | None = None
    point_y: list[float] | None = None
    point_label: list[int] | None = None
    answer: int | None = None
    painted: int | None = None
    model: str | None = None
    model_sha256: str | None = None
    height: int | None = None
    width: int | None = None
    bbox_x: int | None = None
    bbox_y: int | None = None
    bbox_w: int | None = None
    bbox_h: int | None = None
    area: int | None = None
    predicted_iou: float | None = None
    stability_score: float | None = None
    counts: str | None = None
    image_sha256: bytes | None = None
    who: str
    edited_at: datetime
    seconds: float | None = None
    fingerprint: str
    code_version: str

    @property
    def target(self) -> int | str | None:
        """What a replacement or deletion takes away: a mask_id of the dataset, or the edit that made the mask."""
        return self.of if self.mask_id is None else self.mask_id


@dataclass
class EditSession:
    """One writer's edits. Safe among threads; each call leaves one more file, durable when it returns."""

    root: str  # of the dataset
    session: str = field(default_factory=lambda: uuid.uuid4().hex)
    _number: int = 0
    _lock: Lock = field(default_factory=Lock)

    def add(self, edit: Edit) -> Edit:
        """The edit as it is stored, with its id. Raises StorageError when it could not be."""
        with self._lock:
            number = self._number
            self._number += 1
        stored = replace(edit, edit_id=f"{self.session}-{number:06d}")
        put(join(self.root, CORRECTIONS_FOLDER, _file_name(stored)), write_rows([asdict(stored)], EDITS))
        return stored


class EditBook:
    """All edits of a dataset. Files that are known are not read again, since none ever changes."""

    def __init__(self, root: str, fingerprint: str) -> None:
        """fingerprint: of the dataset's plan."""
        self._folder = join(root, CORRECTIONS_FOLDER)
        self._fingerprint = fingerprint
        self._known: dict[str, Edit] = {}
        self._images: dict[str, list[Edit]] = {}  # of all that are known

    def add(self, edit: Edit) -> None:
        """Takes in an edit that this process has stored, so that it need not be read."""
        self._take({_file_name(edit): edit})

    def read(self, version: str | None = None) -> dict[str, list[Edit]]:
        """Edits by image, each image's by time. version: only those that it names (see `newest_version`).

        Raises DatasetError for a damaged file, for edits of another dataset, and where a version is not there as it
        was.
        """
        names = _names(self._folder)
        wanted = names if version is None else _of_version(names, version, self._folder)
        unread = [name for name in wanted if name not in self._known]
        with ThreadPoolExecutor(_READERS) as pool:
            self._take(dict(zip(unread, pool.map(self._read, unread), strict=True)))
        if len(self._known) == len(wanted):
            return dict(self._images)
        return _by_image(self._known[name] for name in wanted)

    def _take(self, edits: dict[str, Edit]) -> None:
        self._known |= edits
        for image_id, new in _by_image(edits.values()).items():
            self._images[image_id] = _in_order([*self._images.get(image_id, ()), *new])

    def _read(self, name: str) -> Edit:
        uri = join(self._folder, name)
        try:
            (row,) = read_rows(read_bytes(uri), EDITS)
        except ValueError as error:
            raise DatasetError(f"{uri} does not hold an edit: {error}") from None
        if row["fingerprint"] != self._fingerprint:
            raise DatasetError(f"{uri} is an edit of another dataset: move it out of {self._folder}")
        return Edit(**row)


def newest_version(root: str) -> str | None:
    """Names all edits that are there now, to the file: "<time of the last>-<digest>". None where there is none."""
    names = _names(join(root, CORRECTIONS_FOLDER))
    return f"{names[-1][:_STAMP_LENGTH]}-{_digest(names)}" if names else None


def now() -> datetime:
    return datetime.now(timezone.utc)


def _file_name(edit: Edit) -> str:
    return f"{edit.edited_at.astimezone(timezone.utc).strftime(_STAMP)}-{edit.edit_id}.parquet"


def _by_image(edits: Iterable[Edit]) -> dict[str, list[Edit]]:
    found: dict[str, list[Edit]] = {}
    for edit in edits:
        found.setdefault(edit.image_id, []).append(edit)
    return {image_id: _in_order(each) for image_id, each in found.items()}


def _in_order(edits: list[Edit]) -> list[Edit]:
    return sorted(edits, key=lambda edit: (edit.edited_at, edit.edit_id))


def _names(folder: str) -> list[str]:
    """Of the files of edits, by time."""
    return [name for name in list_names(folder) if name.endswith(".parquet") and not name.startswith(".")]


def _of_version(names: list[str], version: str, folder: str) -> list[str]:
    match = _VERSION.fullmatch(version)
    until = [name for name in names if match and name[:_STAMP_LENGTH] <= match[1]]
    if match is None or _digest(until) != match[2]:
        raise DatasetError(
            f"{folder} does not hold version {version!r} of the corrections: edits of that time came late or are gone"
        )
    return until


def _digest(names: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(names).encode()).hexdigest()[:12]
