"""From what the rooms return to the rows that the dataset stores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from data_engine.images.decode import decode
from data_engine.images.fingerprint import perceptual_hash, sha256
from data_engine.images.settings import InputSettings
from data_engine.images.shard import EncodedImage, ImageError
from data_engine.masks.generator import MaskGenerator, PreparedImage
from data_engine.masks.image_masks import ImageMasks, Rejects
from data_engine.masks.rejects import Verdict
from data_engine.storage import redact

REASONS = {verdict: verdict.name.lower() if verdict else None for verdict in Verdict}


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an image has no masks."""

    type: str
    message: str


@dataclass(frozen=True, slots=True)
class DecodedImage:
    """An image ready for the model, or the reason why it is not."""

    image_id: str
    uri: str
    sha256: bytes | None
    phash: int | None = None
    width: int | None = None
    height: int | None = None
    prepared: PreparedImage | None = None
    failure: Failure | None = None
    seconds: float = 0.0


def decode_image(image: EncodedImage, generator: MaskGenerator, settings: InputSettings) -> DecodedImage:
    """Everything that happens to an image before the model. Never raises: what goes wrong becomes a failure."""
    if image.data is None:
        assert image.error is not None
        return DecodedImage(image.image_id, image.uri, None, failure=Failure(image.error.type, str(image.error)))
    digest = sha256(image.data)
    try:
        pixels = decode(image.data, settings)
        phash = perceptual_hash(pixels)
        prepared = generator.prepare(pixels)
    except ImageError as error:
        failure = Failure(error.type, str(error))
    except MemoryError:
        failure = Failure(
            "out_of_memory", "not enough memory to decode it; lower input.max_pixels or run.decode_threads"
        )
    except Exception as error:  # one image never fails a shard
        failure = Failure("internal_error", f"{type(error).__name__}: {error}")
    else:
        height, width = pixels.shape[:2]
        return DecodedImage(image.image_id, image.uri, digest, phash, width, height, prepared)
    return DecodedImage(image.image_id, image.uri, digest, failure=failure)


def image_row(
    image: DecodedImage, shard: str, masks: ImageMasks | None, failure: Failure | None, generate_s: float | None
) -> dict[str, Any]:
    """A row of the images table. A failed image has no masks, and its message no secrets and no end of lines."""
    counts = masks.filtered.as_dict() if masks is not None else {}
    return {
        "image_id": image.image_id,
        "uri": image.uri,
        "shard": shard,
        "sha256": image.sha256,
        "phash": image.phash,
        "width": image.width,
        "height": image.height,
        "n_masks": len(masks) if masks is not None else 0,
        "n_candidates": counts.get("candidates", 0),
        "n_rejected_iou": counts.get("rejected_iou", 0),
        "n_rejected_stability": counts.get("rejected_stability", 0),
        "n_rejected_edge": counts.get("rejected_edge", 0),
        "n_rejected_nms": counts.get("rejected_nms", 0),
        "n_rejected_area": counts.get("rejected_area", 0),
        "status": "failed" if failure else "ok",
        "error_type": failure.type if failure else None,
        "error_message": " ".join(redact(failure.message).split())[:1000] if failure else None,
        "decode_ms": 1000 * image.seconds if image.sha256 else None,
        "generate_ms": 1000 * generate_s if generate_s is not None else None,
    }


def mask_columns(masks: ImageMasks) -> dict[str, Any]:
    """Columns of the masks table. The stored box counts pixels: w = x1 - x0 + 1, as pycocotools does."""
    return _facts(masks, masks.height, masks.width)


def reject_columns(masks: ImageMasks) -> dict[str, Any] | None:
    """Columns of the rejects table, where rejects were asked for."""
    rejects = masks.rejects
    if rejects is None:
        return None
    return {
        **_facts(rejects, masks.height, masks.width),
        "mask_id": [number if number >= 0 else None for number in rejects.mask_id.tolist()],
        "reason": [REASONS[verdict] for verdict in rejects.verdict.tolist()],
    }


def _facts(of: ImageMasks | Rejects, height: int, width: int) -> dict[str, Any]:
    x0, y0, x1, y1 = of.boxes.T
    occupied = of.area > 0  # the box of an empty mask has no pixels
    crop_x0, crop_y0, crop_x1, crop_y1 = of.crop_boxes.T
    return {
        "height": np.full(len(of), height),
        "width": np.full(len(of), width),
        "bbox_x": x0 * occupied,
        "bbox_y": y0 * occupied,
        "bbox_w": (x1 - x0 + 1) * occupied,
        "bbox_h": (y1 - y0 + 1) * occupied,
        "area": of.area,
        "predicted_iou": of.predicted_iou,
        "stability_score": of.stability_score,
        "point_x": of.points[:, 0],
        "point_y": of.points[:, 1],
        "crop_x": crop_x0,
        "crop_y": crop_y0,
        "crop_w": crop_x1 - crop_x0,
        "crop_h": crop_y1 - crop_y0,
        "crop_layer": of.crop_layer,
        "counts": of.counts,
    }
