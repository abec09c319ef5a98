"""webdataset tars: the original image, its JSON and, if wanted, its masks as an array, under one key.

JPEG and PNG are taken over byte for byte, other formats become PNG. The masks are on the image as displayed: where
`exif_orientation` in the JSON is not 1, a reader must apply it.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from data_engine.dataset.export.format import Context, ExportImage, Finished, PieceTarget
from data_engine.dataset.export.source import Decoder
from data_engine.dataset.export.tars import tar_of_piece

_KEPT = {"jpg": b"\xff\xd8\xff", "png": b"\x89PNG\r\n\x1a\n"}


@dataclass(frozen=True, slots=True, kw_only=True)
class WebDataset:
    """Tars of `images_per_tar` images. Keys have no dot, since webdataset splits names at the first."""

    images_per_tar: int = 1000
    with_arrays: bool = False  # masks.npz: masks NxHxW bool, packed to bits

    name: ClassVar[str] = "webdataset"
    needs_originals: ClassVar[bool] = True
    has_categories: ClassVar[bool] = False

    @property
    def images_per_piece(self) -> int:
        return self.images_per_tar

    def write(self, images: Iterator[ExportImage], target: PieceTarget, context: Context) -> None:
        with tar_of_piece(target, f"masks-{target.index:06d}.tar") as tar:
            for item in images:
                key = f"{item.number:09d}"
                suffix, data, orientation = portable(item.original, context.pictures)
                tar.add(f"{key}.{suffix}", data)
                tar.add(f"{key}.json", json.dumps(_record(item, orientation), separators=(",", ":")).encode())
                if self.with_arrays:
                    tar.add(f"{key}.masks.npz", _packed(item))
                target.wrote(item.image, copied=data is item.original)

    def finish(self, export: Finished) -> list[str]:  # noqa: ARG002 - nothing describes the whole
        return []


def portable(data: bytes, pictures: Decoder) -> tuple[str, bytes, int]:
    """An image file -> (suffix, bytes, EXIF orientation to apply). Only JPEG and PNG are kept as they are."""
    for suffix, magic in _KEPT.items():
        if data.startswith(magic):
            return suffix, data, pictures.orientation(data)
    return "png", as_png(data, pictures), 1


def as_png(data: bytes, pictures: Decoder) -> bytes:
    """The image as it was masked, without loss."""
    buffer = io.BytesIO()
    Image.fromarray(pictures.decode(data)).save(buffer, "PNG")
    return buffer.getvalue()


def _record(item: ExportImage, orientation: int) -> dict[str, Any]:
    row = item.image.row
    columns = ("mask_id", "area", "predicted_iou", "stability_score", "label", "label_score")
    return {
        "image_id": row["image_id"],
        "uri": row["uri"],
        "width": row["width"],
        "height": row["height"],
        "exif_orientation": orientation,
        "masks": [
            {
                **{name: mask[name] for name in columns},
                "bbox": [mask["bbox_x"], mask["bbox_y"], mask["bbox_w"], mask["bbox_h"]],
                "point": [mask["point_x"], mask["point_y"]],
                "segmentation": {"size": [mask["height"], mask["width"]], "counts": mask["counts"]},
            }
            for mask in item.image.masks.to_pylist()
        ],
    }


def _packed(item: ExportImage) -> bytes:
    """An npz of `masks` (uint8, bits packed along the last axis) and `shape` (N, H, W)."""
    image = item.image
    shape = (len(image), image.row["height"], image.row["width"])
    packed = np.empty((*shape[:2], -(-shape[2] // 8)), np.uint8)
    for i in range(len(image)):
        packed[i] = np.packbits(image.mask(i), axis=-1)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, masks=packed, shape=np.array(shape))
    return buffer.getvalue()
