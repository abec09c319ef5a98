"""Hugging Face: Parquet shards of one row an image, with the image's bytes and its masks, and a dataset card.

The features stand in the schema's metadata, where `datasets` and the Hub's viewer read them. `datasets` turns images as
their EXIF orientation says, so the bytes are the original's wherever that shows what was masked.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.parquet as pq

from data_engine.dataset.export.dataset_card import dataset_card
from data_engine.dataset.export.destination import in_the_making, put_bytes, room_for
from data_engine.dataset.export.format import Context, ExportImage, Finished, PieceTarget
from data_engine.dataset.export.webdataset import as_png, portable
from data_engine.storage import is_local, join

_MASK: dict[str, str | list[str]] = {
    "mask_id": "int32",
    "category": "int32",
    "bbox": ["int32"],
    "area": "int32",
    "predicted_iou": "float32",
    "stability_score": "float32",
    "point": ["float32"],
    "label": "string",
    "label_score": "float32",
    "counts": "string",
}
_COLUMNS: dict[str, str | list[str]] = {"image_id": "string", "uri": "string", "width": "int32", "height": "int32"}
_BYTES_PER_GROUP = 100 << 20  # what the Hub's viewer likes


@dataclass(frozen=True, slots=True, kw_only=True)
class HuggingFace:
    """data/train-<n>-of-<m>.parquet of `images_per_file` images, and README.md."""

    images_per_file: int = 1000

    name: ClassVar[str] = "huggingface"
    needs_originals: ClassVar[bool] = True
    has_categories: ClassVar[bool] = True

    @property
    def images_per_piece(self) -> int:
        return self.images_per_file

    def write(self, images: Iterator[ExportImage], target: PieceTarget, context: Context) -> None:
        schema = features_schema(context.categories)
        with in_the_making("a Parquet file") as file, room_for("a Parquet file"):
            rows: list[dict[str, Any]] = []
            held = 0
            with pq.ParquetWriter(file, schema, compression="zstd", write_page_index=True) as writer:
                for item in images:
                    row = _row(item, context, target)
                    held += len(row["image"]["bytes"])
                    rows.append(row)
                    if held >= _BYTES_PER_GROUP:
                        writer.write_table(pa.Table.from_pylist(rows, schema=schema))
                        rows, held = [], 0
                if rows:
                    writer.write_table(pa.Table.from_pylist(rows, schema=schema))
            if target.report.images:
                file.seek(0)
                target.put_stream(f"data/train-{target.index:05d}-of-{context.pieces:05d}.parquet", file)

    def finish(self, export: Finished) -> list[str]:
        put_bytes(join(export.destination, "README.md"), dataset_card(export).encode())
        return ["README.md is the dataset card: its licence is for you to fill in before you publish"]


def features_schema(categories: tuple[str, ...]) -> pa.Schema:
    """The Arrow schema, with the features that `datasets` makes of it."""
    arrow = {name: _arrow_type(kind) for name, kind in _MASK.items()}
    mask = {name: _feature(kind) for name, kind in _MASK.items()}
    mask["category"] = {"names": list(categories), "_type": "ClassLabel"}
    arrow["category"] = pa.int64()  # what a ClassLabel is stored as
    features = {
        "image_id": _feature("string"),
        "image": {"_type": "Image"},
        **{name: _feature(kind) for name, kind in _COLUMNS.items() if name != "image_id"},
        "masks": [mask],
    }
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    fields = [
        ("image_id", pa.string()),
        ("image", image),
        *((name, _arrow_type(kind)) for name, kind in _COLUMNS.items() if name != "image_id"),
        ("masks", pa.list_(pa.struct(list(arrow.items())))),
    ]
    return pa.schema(fields).with_metadata({"huggingface": json.dumps({"info": {"features": features}})})


def _row(item: ExportImage, context: Context, target: PieceTarget) -> dict[str, Any]:
    row = item.image.row
    suffix, data, orientation = portable(item.original, context.pictures)
    if orientation == 1 and context.pictures.stored_orientation(data) != 1:
        suffix, data = "png", as_png(data, context.pictures)  # `datasets` would turn what was masked as it lies
    target.wrote(item.image, copied=data is item.original)
    masks = [
        {
            **{name: mask[name] for name in _MASK if name in mask},
            "category": context.category(mask["label"]),
            "bbox": [mask["bbox_x"], mask["bbox_y"], mask["bbox_w"], mask["bbox_h"]],
            "point": [mask["point_x"], mask["point_y"]],
        }
        for mask in item.image.masks.to_pylist()
    ]
    return {
        **{name: row[name] for name in _COLUMNS},
        "uri": None if is_local(row["uri"]) else row["uri"],  # a path of this machine is nobody's business
        "image": {"bytes": data, "path": f"{item.name}.{suffix}"},
        "masks": masks,
    }


def _arrow_type(kind: str | list[str]) -> pa.DataType:
    return pa.list_(_arrow_type(kind[0])) if isinstance(kind, list) else pa.type_for_alias(kind)


def _feature(kind: str | list[str]) -> Any:
    return [_feature(kind[0])] if isinstance(kind, list) else {"dtype": kind, "_type": "Value"}
