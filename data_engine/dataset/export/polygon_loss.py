"""What polygons lose: the IoU of each polygon, drawn by pycocotools, with the run lengths it was made from."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from pycocotools import mask as coco

from data_engine.dataset.export.destination import put_bytes
from data_engine.dataset.export.format import Finished
from data_engine.storage import join

LOSS_FILE = "loss.json"
LOW = 0.9
QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75)
_BINS = 1000  # quantiles are true to a thousandth


@dataclass(slots=True)
class PolygonLoss:
    """Counts over masks that add up over pieces."""

    masks: int = 0
    iou_sum: float = 0.0
    iou_min: float = 1.0
    below: int = 0  # masks of an IoU below LOW
    histogram: dict[int, int] = field(default_factory=dict)  # thousandths of IoU, rounded down -> masks
    with_holes: int = 0  # masks
    holes: int = 0
    in_pieces: int = 0  # masks of several pieces
    merged: int = 0  # pieces that became part of another's polygon
    dropped_pieces: int = 0  # too small for the tolerance
    dropped_masks: int = 0  # of which nothing was left: they are not exported, and count as an IoU of 0

    def add(
        self, mask: Mapping[str, Any], rings: Sequence[Sequence[float]], *, holes: int, dropped: int, merged: int = 0
    ) -> None:
        """rings: the polygons that stand for the mask in the export, each x, y, x, y, ..."""
        iou = polygon_iou(mask, rings)
        self.masks += 1
        self.iou_sum += iou
        self.iou_min = min(self.iou_min, iou)
        self.below += iou < LOW
        step = min(int(iou * _BINS), _BINS)
        self.histogram[step] = self.histogram.get(step, 0) + 1
        self.with_holes += holes > 0
        self.holes += holes
        self.in_pieces += len(rings) + merged + dropped > 1
        self.merged += merged
        self.dropped_pieces += dropped
        self.dropped_masks += not rings

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def sum(cls, parts: Sequence[Mapping[str, Any]]) -> PolygonLoss:
        total = cls()
        for part in parts:
            for name, value in part.items():
                if name == "histogram":
                    for step, count in value.items():  # keys come back from JSON as strings
                        total.histogram[int(step)] = total.histogram.get(int(step), 0) + count
                else:
                    before = getattr(total, name)
                    setattr(total, name, min(before, value) if name == "iou_min" else before + value)
        return total

    def summary(self) -> dict[str, Any]:
        steps = sorted(self.histogram)
        reached = np.cumsum([self.histogram[step] for step in steps])
        quantiles = {
            f"{share:g}": steps[int(np.searchsorted(reached, share * self.masks))] / _BINS
            for share in QUANTILES
            if steps
        }
        return {
            "masks": self.masks,
            "iou_mean": round(self.iou_sum / self.masks, 5) if self.masks else None,
            "iou_quantiles": quantiles,
            "iou_min": round(self.iou_min, 5) if self.masks else None,
            f"share_below_{LOW:g}": round(self.below / self.masks, 5) if self.masks else None,
            "masks_with_holes": self.with_holes,
            "holes_dropped": self.holes,
            "masks_in_pieces": self.in_pieces,
            "pieces_merged": self.merged,
            "pieces_dropped": self.dropped_pieces,
            "masks_dropped": self.dropped_masks,
        }


def polygon_iou(mask: Mapping[str, Any], rings: Sequence[Sequence[float]]) -> float:
    """Of the union of the polygons with the mask. 0 where there is no polygon."""
    if not rings:
        return 0.0
    height, width = mask["height"], mask["width"]
    runs = {"size": [height, width], "counts": mask["counts"].encode("ascii")}
    # one at a time: a single call numbers polygons in a uint8 (see coco_runs)
    drawn = coco.frPyObjects([rings[0]], height, width)[0]
    for ring in rings[1:]:
        drawn = coco.merge([drawn, coco.frPyObjects([ring], height, width)[0]])
    common = int(coco.area(coco.merge([drawn, runs], intersect=True)))
    return common / (int(coco.area(drawn)) + mask["area"] - common)


def put_loss(export: Finished) -> list[str]:
    """Writes `loss.json`, and says the same in lines."""
    loss = PolygonLoss.sum([report.figures for report in export.reports])
    summary = loss.summary()
    put_bytes(join(export.destination, LOSS_FILE), json.dumps(summary, indent=1).encode() + b"\n")
    if not loss.masks:
        return []
    quantiles = ", ".join(f"{float(share):.0%} {value:.3f}" for share, value in summary["iou_quantiles"].items())
    return [
        f"polygons against run lengths: mean IoU {summary['iou_mean']:.3f} "
        f"(quantiles {quantiles}; lowest {summary['iou_min']:.3f}); "
        f"{loss.below:,} of {loss.masks:,} masks below {LOW:g}",
        f"lost: {loss.holes:,} holes of {loss.with_holes:,} masks filled; of {loss.in_pieces:,} masks in pieces, "
        f"{loss.merged:,} pieces merged into another's polygon and {loss.dropped_pieces:,} dropped; "
        f"{loss.dropped_masks:,} masks dropped",
    ]
