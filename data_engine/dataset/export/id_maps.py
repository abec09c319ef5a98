"""PNG id maps: a 16-bit picture an image, each pixel the id of the mask on top there; 0 is no mask.

Masks of SAM overlap, a map cannot: the smaller mask is on top, and a JSON beside each map says what each mask lost.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from PIL import Image

from data_engine.dataset.export.destination import put_bytes
from data_engine.dataset.export.format import Context, ExportImage, Finished, PieceTarget
from data_engine.dataset.export.index import put_index, put_piece_of_index
from data_engine.dataset.export.polygons import mask_patch
from data_engine.dataset.reader import DatasetImage
from data_engine.errors import DatasetError
from data_engine.storage import join

MAX_ID = (1 << 16) - 1
OVERLAP_FILE = "overlap.json"
_INDEX = pa.schema([("file", pa.string()), ("image_id", pa.string()), ("uri", pa.string())])


@dataclass(frozen=True, slots=True, kw_only=True)
class IdMaps:
    """<number>-<name>.png and .json, index.parquet, and overlap.json for the whole.

    Raises DatasetError for an image of more than 65,535 masks.
    """

    name: ClassVar[str] = "png"
    needs_originals: ClassVar[bool] = False
    has_categories: ClassVar[bool] = True
    images_per_piece: ClassVar[int] = 500

    def write(self, images: Iterator[ExportImage], target: PieceTarget, context: Context) -> None:
        index = []
        lost = dict.fromkeys(("mask_pixels", "hidden_pixels", "masks_hidden", "masks_partly_hidden"), 0)
        for item in images:
            ids, visible = id_map(item.image)
            buffer = io.BytesIO()
            Image.fromarray(ids).save(buffer, "PNG")
            target.put(f"{item.name}.png", buffer.getvalue())
            target.put(f"{item.name}.json", json.dumps(_record(item, visible, context), indent=1).encode() + b"\n")
            area = item.image.masks["area"].to_numpy()
            lost["mask_pixels"] += int(area.sum())
            lost["hidden_pixels"] += int((area - visible).sum())
            lost["masks_hidden"] += int((visible == 0).sum())
            lost["masks_partly_hidden"] += int(((visible > 0) & (visible < area)).sum())
            row = item.image.row
            index.append({"file": f"{item.name}.png", "image_id": row["image_id"], "uri": row["uri"]})
            target.wrote(item.image)
        target.report.figures = lost
        put_piece_of_index(target, index, _INDEX)

    def finish(self, export: Finished) -> list[str]:
        lost = {name: sum(report.figures[name] for report in export.reports) for name in export.reports[0].figures}
        whole = {"masks": export.total.masks, **lost}
        put_bytes(join(export.destination, OVERLAP_FILE), json.dumps(whole, indent=1).encode() + b"\n")
        put_index(export, _INDEX)
        share = lost["hidden_pixels"] / max(lost["mask_pixels"], 1)
        return [
            f"lost to overlap: {share:.1%} of the masks' pixels lie under a smaller mask; of {whole['masks']:,} masks "
            f"{lost['masks_partly_hidden']:,} are partly hidden and {lost['masks_hidden']:,} wholly"
        ]


def id_map(image: DatasetImage) -> tuple[np.ndarray, np.ndarray]:
    """-> HxW uint16, in which mask i has the id i + 1, and how many pixels of each mask are seen, N int64."""
    if len(image) > MAX_ID:
        raise DatasetError(
            f"{image.image_id}: it has {len(image):,} masks, and a 16-bit id map holds {MAX_ID:,}; "
            "take fewer with --min-area, --min-iou or --min-stability, or another format"
        )
    ids = np.zeros((image.row["height"], image.row["width"]), np.uint16)
    rows = image.masks.to_pylist()
    for i in np.argsort(-image.masks["area"].to_numpy(), kind="stable"):  # the last one is on top
        patch, (y, x) = mask_patch(rows[i])
        ids[y : y + patch.shape[0], x : x + patch.shape[1]][patch] = i + 1
    return ids, np.bincount(ids.reshape(-1), minlength=len(image) + 1)[1:]


def _record(item: ExportImage, visible: np.ndarray, context: Context) -> dict[str, Any]:
    row = item.image.row
    return {
        "image_id": row["image_id"],
        "uri": row["uri"],
        "width": row["width"],
        "height": row["height"],
        "ids": [
            {
                "id": i + 1,
                "mask_id": mask["mask_id"],
                "category": context.categories[context.category(mask["label"])],
                "area": mask["area"],
                "visible_area": int(visible[i]),
                "predicted_iou": mask["predicted_iou"],
                "stability_score": mask["stability_score"],
            }
            for i, mask in enumerate(item.image.masks.to_pylist())
        ],
    }
