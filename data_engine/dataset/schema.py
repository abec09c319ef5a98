"""The tables of a dataset, their file metadata, and the version that readers check.

Rows are flat on purpose: one row a mask costs the same space as nested lists and scans 26 to 32 times faster, because
the run lengths (97 % of the bytes) stay unread. `bbox_*` follow pycocotools (w counts pixels: xmax - xmin + 1).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from data_engine.errors import DatasetError

SCHEMA_VERSION = "1.0"

IMAGES = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),
        pa.field("shard", pa.string(), nullable=False),
        pa.field("sha256", pa.binary(32)),  # of the encoded bytes; null when they could not be read
        pa.field("phash", pa.uint64()),  # 64-bit perceptual hash; null when the image could not be decoded
        pa.field("width", pa.int32()),  # as displayed: after EXIF orientation
        pa.field("height", pa.int32()),
        pa.field("n_masks", pa.int32(), nullable=False),
        pa.field("n_candidates", pa.int32(), nullable=False),  # = n_masks + the five below
        pa.field("n_rejected_iou", pa.int32(), nullable=False),
        pa.field("n_rejected_stability", pa.int32(), nullable=False),
        pa.field("n_rejected_edge", pa.int32(), nullable=False),
        pa.field("n_rejected_nms", pa.int32(), nullable=False),
        pa.field("n_rejected_area", pa.int32(), nullable=False),
        pa.field("status", pa.dictionary(pa.int8(), pa.string()), nullable=False),  # ok | failed
        pa.field("error_type", pa.string()),
        pa.field("error_message", pa.string()),
        pa.field("decode_ms", pa.float32()),
        pa.field("generate_ms", pa.float32()),
    ]
)

MASKS = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("mask_id", pa.int32(), nullable=False),  # 0, 1, ... within the image
        pa.field("height", pa.int32(), nullable=False),
        pa.field("width", pa.int32(), nullable=False),
        pa.field("bbox_x", pa.int32(), nullable=False),
        pa.field("bbox_y", pa.int32(), nullable=False),
        pa.field("bbox_w", pa.int32(), nullable=False),
        pa.field("bbox_h", pa.int32(), nullable=False),
        pa.field("area", pa.int32(), nullable=False),
        pa.field("predicted_iou", pa.float32(), nullable=False),
        pa.field("stability_score", pa.float32(), nullable=False),
        pa.field("point_x", pa.float32(), nullable=False),
        pa.field("point_y", pa.float32(), nullable=False),
        pa.field("crop_x", pa.int32(), nullable=False),
        pa.field("crop_y", pa.int32(), nullable=False),
        pa.field("crop_w", pa.int32(), nullable=False),
        pa.field("crop_h", pa.int32(), nullable=False),
        pa.field("crop_layer", pa.int8(), nullable=False),
        pa.field("counts", pa.string(), nullable=False),  # COCO compressed run lengths, ASCII
        pa.field("label", pa.string()),
        pa.field("label_score", pa.float32()),
    ]
)

REASON = pa.dictionary(pa.int8(), pa.string())

# Of images that keep their rejects, every candidate above the floor of the predicted IoU, as it was before its small
# regions were cleaned. Rows with a reason are rejects; one without is the mask `mask_id`, so that its place among the
# candidates, which decides ties, is known.
REJECTS = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("candidate_id", pa.int32(), nullable=False),  # 0, 1, ... within the image, as the model gave them
        pa.field("reason", REASON),  # iou | stability | edge | area | nms; null: it stays
        pa.field("mask_id", pa.int32()),  # of those that stay
        *(MASKS.field(name) for name in MASKS.names[2 : MASKS.names.index("counts")]),
        pa.field("counts", pa.string()),  # null below the stability floor, and where the mask's own row has them
    ]
)

_METADATA_KEY = b"data_engine"


def with_metadata(schema: pa.Schema, metadata: Mapping[str, Any]) -> pa.Schema:
    """The schema carrying what every file of a dataset says of its origin."""
    return schema.with_metadata({_METADATA_KEY: json.dumps({"schema_version": SCHEMA_VERSION, **metadata})})


def read_metadata(schema: pa.Schema, where: str) -> dict[str, Any]:
    """The metadata of a file of ours. Raises DatasetError for another's file or a newer major version."""
    raw = (schema.metadata or {}).get(_METADATA_KEY)
    if raw is None:
        raise DatasetError(f"{where} was not written by data-engine: it carries no data_engine metadata")
    metadata = json.loads(raw)
    check_version(metadata.get("schema_version", ""), where)
    return metadata


def check_version(version: str, where: str) -> None:
    """Raises DatasetError when the major version is newer than this code's, or unreadable."""
    major = version.split(".")[0]
    if not major.isdigit():
        raise DatasetError(f"{where} has no readable schema version (it says {version!r})")
    if int(major) > int(SCHEMA_VERSION.split(".")[0]):
        raise DatasetError(
            f"{where} has schema version {version}, this installation reads up to {SCHEMA_VERSION}: upgrade data-engine"
        )
