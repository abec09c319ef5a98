"""Export in the format of SA-1B: `sa_<id>.jpg` beside `sa_<id>.json`, in tars or in a folder.

What readers of SA-1B rely on, checked against an authentic record: the keys and their order, `w = xmax - xmin` in
`bbox`, floats in `bbox` and ints in `area` and `crop_box`, one type a field everywhere (Hugging Face infers types from
the first five records), nothing null, no image without masks.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from PIL import Image

from data_engine.dataset.export.format import Context, ExportImage, Finished, PieceTarget
from data_engine.dataset.export.index import put_index, put_piece_of_index
from data_engine.dataset.export.tars import tar_of_piece
from data_engine.dataset.reader import DatasetImage

JPEG_QUALITY = 95
JPEG_MAX_SIDE = 65_500  # of libjpeg

_INDEX = pa.schema(
    [("sa_id", pa.int64()), ("file", pa.string()), ("image_id", pa.string()), ("uri", pa.string())],
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sa1b:
    """A folder, or tars of `images_per_tar` images. `index.parquet` leads from SA-1B's numbers to image_id and uri.

    Images of more pixels a side than a JPEG can have are left out and counted.
    """

    images_per_tar: int | None = None

    name: ClassVar[str] = "sa1b"
    needs_originals: ClassVar[bool] = True
    has_categories: ClassVar[bool] = False

    @property
    def images_per_piece(self) -> int:
        return self.images_per_tar or 1000

    def write(self, images: Iterator[ExportImage], target: PieceTarget, context: Context) -> None:
        file = f"sa_{target.index:06d}.tar" if self.images_per_tar else None
        index = []
        with tar_of_piece(target, file) if file else nullcontext() as tar:
            put = tar.add if tar is not None else target.put
            for item in images:
                image = item.image
                if not fits_jpeg(image):
                    target.report.too_large += 1
                    continue
                jpeg, copied = as_jpeg(item.original, context.pictures.decode, context.pictures.is_plain_jpeg)
                record = sa1b_record(image, item.number, item.first_mask)
                put(f"sa_{item.number}.jpg", jpeg)
                put(f"sa_{item.number}.json", json.dumps(record, separators=(",", ":")).encode())
                index.append(
                    {
                        "sa_id": item.number,
                        "file": file or f"sa_{item.number}.jpg",
                        "image_id": image.image_id,
                        "uri": image.row["uri"],
                    }
                )
                target.wrote(image, copied)
        put_piece_of_index(target, index, _INDEX)

    def finish(self, export: Finished) -> list[str]:
        put_index(export, _INDEX)
        return []


def sa1b_record(image: DatasetImage, number: int, first_mask: int) -> dict[str, Any]:
    """One image's JSON. first_mask: the id of its mask 0."""
    height, width = image.row["height"], image.row["width"]
    annotations = [
        {
            "bbox": [
                float(m["bbox_x"]),
                float(m["bbox_y"]),
                float(max(m["bbox_w"] - 1, 0)),
                float(max(m["bbox_h"] - 1, 0)),
            ],
            "area": m["area"],
            "segmentation": {"size": [height, width], "counts": m["counts"]},
            "predicted_iou": m["predicted_iou"],
            "point_coords": [[m["point_x"], m["point_y"]]],
            "crop_box": [m["crop_x"], m["crop_y"], m["crop_w"], m["crop_h"]],
            "id": first_mask + m["mask_id"],
            "stability_score": m["stability_score"],
        }
        for m in image.masks.to_pylist()
    ]
    file = f"sa_{number}.jpg"
    return {
        "image": {"image_id": number, "width": width, "height": height, "file_name": file},
        "annotations": annotations,
    }


def fits_jpeg(image: DatasetImage) -> bool:
    return max(image.row["height"], image.row["width"]) <= JPEG_MAX_SIDE


def as_jpeg(
    data: bytes, decode: Callable[[bytes], np.ndarray], is_plain_jpeg: Callable[[bytes], bool]
) -> tuple[bytes, bool]:
    """The image as a JPEG whose pixels are those the masks were made on, and whether it is the original file."""
    if is_plain_jpeg(data):
        return data, True
    buffer = io.BytesIO()
    Image.fromarray(decode(data)).save(buffer, "JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue(), False
