"""Down to where rejected candidates are kept."""

from __future__ import annotations

from dataclasses import dataclass

from data_engine.masks.settings import MaskSettings


@dataclass(frozen=True, slots=True)
class Floors:
    """Each means what the threshold of that name means: 0 is no limit."""

    predicted_iou: float  # a candidate below it is only counted
    stability: float  # of a candidate below it the facts are kept, and not the runs

    @classmethod
    def of(cls, settings: MaskSettings, predicted_iou: float | None, stability: float | None, margin: float) -> Floors:
        """None: `margin` below the threshold."""
        margins = round(settings.pred_iou_thresh - margin, 6), round(settings.stability_score_thresh - margin, 6)
        asked = (predicted_iou, stability)
        return cls(*(own if floor is None else floor for floor, own in zip(asked, margins, strict=True))).within(
            settings
        )

    def within(self, settings: MaskSettings) -> Floors:
        """Not above the thresholds: what passes the filters is never missing."""
        return Floors(
            min(self.predicted_iou, settings.pred_iou_thresh), min(self.stability, settings.stability_score_thresh)
        )
