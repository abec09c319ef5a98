"""The masks of one image, in columns, and the reference's records made from them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from data_engine.masks import rle

OutputMode = Literal["binary_mask", "uncompressed_rle", "coco_rle"]


@dataclass(slots=True)
class MaskCounts:
    """What became of the candidates of one image: candidates = all rejected + the masks that stay."""

    candidates: int = 0
    rejected_iou: int = 0
    rejected_stability: int = 0
    rejected_edge: int = 0
    rejected_area: int = 0
    rejected_nms: int = 0

    @property
    def rejected(self) -> int:
        return sum(count for name, count in self.as_dict().items() if name != "candidates")

    def add(self, other: MaskCounts) -> None:
        for name, count in other.as_dict().items():
            setattr(self, name, getattr(self, name) + count)

    def as_dict(self) -> dict[str, int]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Rejects:
    """N candidates of one image in the order in which the model gave them: all above the predicted-IoU floor, those
    that stay included, as they were before small regions were cleaned. Columns as in `ImageMasks`."""

    counts: list[str | None]  # None: of a mask that stays as it was, and below the stability floor
    boxes: np.ndarray
    area: np.ndarray
    predicted_iou: np.ndarray
    stability_score: np.ndarray
    points: np.ndarray
    crop_boxes: np.ndarray
    crop_layer: np.ndarray
    verdict: np.ndarray  # N int8, each a `rejects.Verdict`; PASSED for those that stay
    mask_id: np.ndarray  # N int64, the place among the masks of those that stay; -1 of others

    def __len__(self) -> int:
        return len(self.counts)


@dataclass(frozen=True, slots=True)
class ImageMasks:
    """N masks of an image of height x width, best first as the last suppression ordered them."""

    height: int
    width: int
    counts: list[str]  # N COCO compressed run lengths
    boxes: np.ndarray  # Nx4 int64 (x0, y0, x1, y1), last pixels inside
    area: np.ndarray  # N int64 pixels
    predicted_iou: np.ndarray  # N float32
    stability_score: np.ndarray  # N float32
    points: np.ndarray  # Nx2 float64 (x, y) of the prompt
    crop_boxes: np.ndarray  # Nx4 int64 (x0, y0, x1, y1), right and bottom exclusive
    crop_layer: np.ndarray  # N int64
    filtered: MaskCounts
    rejects: Rejects | None = None  # where they were asked for

    def __len__(self) -> int:
        return len(self.counts)

    def mask(self, index: int) -> np.ndarray:
        """HxW bool."""
        return rle.decode(rle.from_counts_string(self.counts[index], self.height, self.width))

    def records(self, output_mode: OutputMode = "binary_mask") -> list[dict[str, Any]]:
        """One dict a mask, as `SamAutomaticMaskGenerator.generate` returns them.

        Keys: segmentation (HxW bool, or an RLE dict), area, bbox (x, y, w, h with w = x1 - x0: one pixel less than
        pycocotools says, like the reference), predicted_iou, point_coords [[x, y]], stability_score, crop_box
        (x, y, w, h). Box numbers are always ints (the reference sometimes returns floats).
        """
        segmentation = self._segmentation(output_mode)
        return [
            {
                "segmentation": segmentation(i),
                "area": int(self.area[i]),
                "bbox": _xywh(self.boxes[i]),
                "predicted_iou": float(self.predicted_iou[i]),
                "point_coords": [self.points[i].tolist()],
                "stability_score": float(self.stability_score[i]),
                "crop_box": _xywh(self.crop_boxes[i]),
            }
            for i in range(len(self))
        ]

    def _segmentation(self, output_mode: OutputMode) -> Callable[[int], Any]:
        size = [self.height, self.width]
        if output_mode == "binary_mask":
            return self.mask
        if output_mode == "coco_rle":
            return lambda i: {"size": size, "counts": self.counts[i]}
        return lambda i: {"size": size, "counts": rle.from_counts_string(self.counts[i], *size).counts.tolist()}


def _xywh(box: np.ndarray) -> list[int]:
    x0, y0, x1, y1 = box.tolist()
    return [x0, y0, x1 - x0, y1 - y0]
