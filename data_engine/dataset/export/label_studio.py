"""Label Studio: tasks whose predictions are the masks as brush strokes, in Label Studio's own run lengths.

That format packs the bytes of an RGBA picture, row by row: 32 bits for their number, 5 for the size of a value less
one, four times 4 for the sizes of a run's length less one, then for each run a bit that says so, two that choose the
size, the length less one and the value. (thi.ng's rle-pack; label_studio_sdk.converter.brush reads it.)
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

import numpy as np
from rlemasklib import RLEMask

from data_engine.dataset.export.destination import in_the_making, put_bytes, room_for
from data_engine.dataset.export.format import OBJECT, Context, ExportImage, Finished, PieceTarget
from data_engine.errors import UsageError
from data_engine.storage import join

_LENGTH_BITS = (3, 4, 8, 16)
_LONGEST = 1 << 16
_CHANNELS = 4
CONFIG_FILE = "label_config.xml"


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelStudio:
    """Files of `images_per_file` tasks, and the labelling interface they belong to.

    image_url: what Label Studio opens, with {image_id} (quoted for a URL) or {uri} in it.
    """

    images_per_file: int = 100
    image_url: str = "{uri}"

    name: ClassVar[str] = "label-studio"
    needs_originals: ClassVar[bool] = False
    has_categories: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if "{image_id}" not in self.image_url and "{uri}" not in self.image_url:
            raise UsageError(
                f"image_url is {self.image_url!r}, the same for every image: put {{image_id}} or {{uri}} into it"
            )

    @property
    def images_per_piece(self) -> int:
        return self.images_per_file

    def write(self, images: Iterator[ExportImage], target: PieceTarget, context: Context) -> None:
        with in_the_making("a file of tasks") as file:
            begun = False
            for item in images:
                task = json.dumps(self._task(item, context.plan), separators=(",", ":"))
                with room_for("a file of tasks"):
                    file.write((b",\n" if begun else b"[\n") + task.encode())
                begun = True
                target.wrote(item.image)
            if begun:
                with room_for("a file of tasks"):
                    file.write(b"\n]\n")
                    file.seek(0)
                target.put_stream(f"tasks_{target.index:05d}.json", file)

    def finish(self, export: Finished) -> list[str]:
        labels = "".join(f"    <Label value={quoteattr(name)}/>\n" for name in export.categories)
        text = (
            '<View>\n  <Image name="image" value="$image" zoom="true"/>\n'
            f'  <BrushLabels name="tag" toName="image">\n{labels}  </BrushLabels>\n</View>\n'
        )
        put_bytes(join(export.destination, CONFIG_FILE), text.encode())
        return []

    def _task(self, item: ExportImage, plan: Mapping[str, Any]) -> dict[str, Any]:
        row = item.image.row
        url = self.image_url.replace("{uri}", row["uri"]).replace("{image_id}", quote(row["image_id"]))
        masks = item.image.masks.to_pylist()
        return {
            "data": {"image": url, "image_id": row["image_id"]},
            "predictions": [
                {
                    "model_version": plan.get("model", {}).get("name") or "data-engine",
                    "score": float(np.mean([mask["predicted_iou"] for mask in masks])),
                    "result": [_stroke(mask) for mask in masks],
                }
            ],
        }


def _stroke(mask: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "id": f"mask{mask['mask_id']}",
        "type": "brushlabels",
        "from_name": "tag",
        "to_name": "image",
        "original_width": mask["width"],
        "original_height": mask["height"],
        "image_rotation": 0,
        "score": mask["predicted_iou"],
        "value": {
            "format": "rle",
            "rle": list(brush_rle([mask["height"], mask["width"]], mask["counts"])),
            "brushlabels": [mask["label"] if mask["label"] is not None else OBJECT],
        },
    }


def brush_rle(size: list[int], counts: str) -> bytes:
    """COCO run lengths (column by column) -> Label Studio's. size: height and width."""
    rows = RLEMask.from_dict({"size": size, "counts": counts.encode("ascii")}).transpose().counts.astype(np.int64)
    lengths, values = _no_longer_than(rows * _CHANNELS, np.arange(len(rows)) % 2)
    choice = np.searchsorted(np.array([1 << bits for bits in _LENGTH_BITS]), lengths)
    parts = [f"{size[0] * size[1] * _CHANNELS:032b}", f"{8 - 1:05b}", *(f"{bits - 1:04b}" for bits in _LENGTH_BITS)]
    for length, which, value in zip(lengths.tolist(), choice.tolist(), values.tolist(), strict=True):
        parts.append(f"1{which:02b}{length - 1:0{_LENGTH_BITS[which]}b}{'11111111' if value else '00000000'}")
    bits = "".join(parts)
    bits += "0" * (-len(bits) % 8)
    return int(bits, 2).to_bytes(len(bits) // 8, "big")


def _no_longer_than(lengths: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Runs cut into such as 16 bits can count; empty ones are left out."""
    parts = -(-lengths // _LONGEST)
    cut = np.full(int(parts.sum()), _LONGEST, np.int64)
    ends = np.cumsum(parts)
    kept = parts > 0
    cut[ends[kept] - 1] = (lengths - (parts - 1) * _LONGEST)[kept]
    return cut, np.repeat(values, parts)
