"""What `MaskGenerator` can be told. Names and meanings are segment-anything's; those it lacks are marked."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

PointGrid = tuple[tuple[float, float], ...]
Suppression = Literal["box", "mask"]


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskSettings:
    """Settings that decide which masks come out. The defaults are the released ones.

    Raises ValueError naming the field, its value and what would be right.
    """

    points_per_side: int | None = 32
    """Points along one side of the prompt grid. None when `point_grids` gives them."""
    points_per_batch: int | None = None
    """At most so many points run at once; None: as many as suit the device (reference: 64). Memory and speed only,
    never the result."""
    pred_iou_thresh: float = 0.88
    """Keep masks whose predicted IoU exceeds this. 0 keeps all."""
    stability_score_thresh: float = 0.95
    """Keep masks at least this stable: IoU between the mask at threshold + offset and at threshold - offset."""
    stability_score_offset: float = 1.0
    """The offset, in logits, of the stability score."""
    box_nms_thresh: float = 0.7
    """Within a crop, of two masks whose boxes overlap more than this, the one with the lower predicted IoU goes."""
    crop_n_layers: int = 0
    """Mask again in crops: layer i has 2^i x 2^i of them."""
    crop_nms_thresh: float = 0.7
    """Between crops, of two masks whose boxes overlap more than this, the one of the larger crop goes."""
    crop_overlap_ratio: float = 512 / 1500
    """Overlap of the crops of layer 1, as a fraction of the image's short side; halved in each further layer."""
    crop_n_points_downscale_factor: int = 1
    """Layer i has points_per_side / factor^i points a side."""
    point_grids: tuple[PointGrid, ...] | None = None
    """Explicit grids, one a crop layer, of (x, y) in [0, 1]. Excludes points_per_side."""
    min_mask_region_area: int = 0
    """Fill holes and remove islands smaller than this many pixels. It does not drop small masks."""
    max_mask_area_fraction: float = 1.0
    """(not in the reference) Drop masks covering at least this fraction of the image; 1.0 drops none. SA-1B: 0.95."""
    drop_small_masks: bool = False
    """(not in the reference) Drop a mask whose largest piece is below min_mask_region_area, instead of keeping it."""
    suppression: Suppression = "box"
    """(not in the reference) "mask": suppress by the IoU of the masks themselves instead of that of their boxes."""
    adaptive_points: bool = False
    """(not in the reference) Prompt a coarse grid first, and between its points only where its masks do not agree."""
    adaptive_step: int = 2
    """(not in the reference) The coarse grid of adaptive_points has every so many-th row and column: 2, 4 or 8."""

    # For pydantic, which validates this dataclass as a section of the job's configuration.
    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012 (slots: not a field)

    def __post_init__(self) -> None:
        def check(name: str, good: bool, remedy: str) -> None:
            if not good:
                raise ValueError(f"{name} is {getattr(self, name)!r}: {remedy}")

        check(
            "points_per_batch",
            self.points_per_batch is None or self.points_per_batch >= 1,
            "use 1 or more, or leave it out",
        )
        check("crop_n_layers", 0 <= self.crop_n_layers <= 8, "use 0 (no crops) to 8")
        check("crop_n_points_downscale_factor", self.crop_n_points_downscale_factor >= 1, "use 1 or more")
        check("min_mask_region_area", self.min_mask_region_area >= 0, "use 0 (off) or a number of pixels")
        check("stability_score_offset", self.stability_score_offset >= 0, "use 0 or more (logits)")
        check("crop_overlap_ratio", 0 <= self.crop_overlap_ratio < 1, "use a fraction from 0 up to 1")
        check("suppression", self.suppression in get_args(Suppression), "use 'box' or 'mask'")
        check("adaptive_step", self.adaptive_step in (2, 4, 8), "use 2, 4 or 8")
        check("max_mask_area_fraction", 0 < self.max_mask_area_fraction <= 1, "use a fraction above 0, 1 for off")
        for name in ("box_nms_thresh", "crop_nms_thresh"):
            check(name, 0 <= getattr(self, name) <= 1, "use an IoU from 0 to 1")
        for name in ("pred_iou_thresh", "stability_score_thresh"):
            check(name, not math.isnan(getattr(self, name)), "use a number")
        if (self.points_per_side is None) == (self.point_grids is None):
            raise ValueError("give points_per_side or point_grids, not both and not neither")
        if self.points_per_side is not None:
            fewest = self.points_per_side // self.crop_n_points_downscale_factor**self.crop_n_layers
            check("points_per_side", fewest >= 1, "too few for the crop layers: the last one would have no point")
        if self.point_grids is not None:
            layers = self.crop_n_layers + 1
            check("point_grids", len(self.point_grids) >= layers, f"give {layers} grids, one a crop layer")
            for layer, grid in enumerate(self.point_grids):
                if not len(grid) or not all(len(xy) == 2 and all(0 <= side <= 1 for side in xy) for xy in grid):
                    raise ValueError(
                        f"point_grids: grid {layer} is not one or more points (x, y) with x and y in [0, 1]"
                    )
        if self.adaptive_points and self.point_grids is not None:
            raise ValueError("adaptive_points needs points_per_side: in point_grids it finds no rows and columns")
        if self.drop_small_masks and not self.min_mask_region_area:
            raise ValueError("drop_small_masks needs min_mask_region_area: it drops masks below that area")
