"""What people did to masks: small Parquet files beside the dataset, only ever added to.

`_corrections/<time>-<session>-<number>.parquet` holds one edit. No two writers ever use the same name, so that people
correct side by side in any store, and what is written stays: to undo is one more edit. The dataset's own files are
never touched.

People's machines have clocks that differ, and clocks are set. So an edit is never stamped before one that its writer
saw of the same image: what somebody did to a mask comes after the mask.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timedelta, timezone
from threading import Lock

import pyarrow as pa

from data_engine.dataset.sealed_rows import write_rows
from data_engine.pipeline.commit import put
from data_engine.storage import join

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

_STAMP = "%Y%m%dT%H%M%S.%f"
STAMP_LENGTH = 22


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
    def file_name(self) -> str:
        return f"{self.edited_at.astimezone(timezone.utc).strftime(_STAMP)}-{self.edit_id}.parquet"

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
        put(join(self.root, CORRECTIONS_FOLDER, stored.file_name), write_rows([asdict(stored)], EDITS))
        return stored


def now_after(edits: Sequence[Edit]) -> datetime:
    """Now, or just after the last of these where their clocks are ahead. edits: of an image, by time."""
    now = datetime.now(timezone.utc)
    return max(now, edits[-1].edited_at + timedelta(microseconds=1)) if edits else now


def in_order(edits: Sequence[Edit]) -> list[Edit]:
    """By time."""
    return sorted(edits, key=lambda edit: (edit.edited_at, edit.edit_id))
