"""Which masks an export takes."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from data_engine.dataset.reader import DatasetImage


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskFilter:
    """Thresholds that a mask must reach, each of them; None takes all."""

    min_iou: float | None = None  # predicted IoU
    min_stability: float | None = None
    min_area: int | None = None  # pixels

    def apply(self, image: DatasetImage) -> DatasetImage:
        """The image with the masks that pass, in the same order and with the same mask_id."""
        masks = image.masks
        for column, least in (
            ("predicted_iou", self.min_iou),
            ("stability_score", self.min_stability),
            ("area", self.min_area),
        ):
            if least is not None:
                # As double, a score of 0.95 in float32 would be less than 0.95.
                bound = pa.scalar(least, pa.float32()) if isinstance(least, float) else least
                masks = masks.filter(pc.greater_equal(masks[column], bound))
        return image if masks is image.masks else DatasetImage(image.row, masks)
