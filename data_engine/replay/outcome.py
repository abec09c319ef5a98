"""What a replay comes to, added up image by image: how many masks, how large, and why the others went."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from data_engine.masks.image_masks import MaskCounts
from data_engine.replay.select import Replayed

QUANTILES = (0.1, 0.5, 0.9)
_STEPS = 64  # of a doubling: an area is known to about 1 %
_DOUBLINGS = 40


@dataclass(slots=True)
class Areas:
    """Areas of any number of masks, in bounded memory."""

    counts: np.ndarray = field(default_factory=lambda: np.zeros(_STEPS * _DOUBLINGS, np.int64))

    def add(self, areas: np.ndarray) -> None:
        """N int64 pixels; an empty mask counts as one pixel."""
        steps = (np.log2(np.maximum(areas, 1)) * _STEPS).round().astype(np.int64)
        self.counts += np.bincount(steps, minlength=len(self.counts))

    def quantile(self, share: float) -> int | None:
        """Pixels, to three digits; None of no masks."""
        reached = np.cumsum(self.counts)
        if not reached[-1]:
            return None
        pixels = 2 ** (np.searchsorted(reached, max(share * reached[-1], 1)) / _STEPS)
        return int(float(f"{pixels:.3g}"))


@dataclass(slots=True)
class Outcome:
    """Of one group of settings, over the images that kept their rejects."""

    label: str
    images: int = 0
    masks: int = 0
    gained: int = 0  # masks that the run did not keep
    lost: int = 0  # masks that only the run kept
    counts: MaskCounts = field(default_factory=MaskCounts)
    areas: Areas = field(default_factory=Areas)

    def add(self, replayed: Replayed, own: Replayed) -> None:
        """One image; `own` is what the run's own settings give."""
        self.images += 1
        self.masks += len(replayed.masks)
        same = len(np.intersect1d(replayed.numbers, own.numbers, assume_unique=True))
        self.gained += len(replayed.numbers) - same
        self.lost += len(own.numbers) - same
        self.counts.add(replayed.masks.filtered)
        self.areas.add(replayed.masks.area)

    def as_dict(self) -> dict[str, Any]:
        return {
            "settings": self.label,
            "images": self.images,
            "masks": self.masks,
            "masks_an_image": self.masks / self.images if self.images else None,
            "gained": self.gained,
            "lost": self.lost,
            **{f"area_p{round(100 * share)}": self.areas.quantile(share) for share in QUANTILES},
            **self.counts.as_dict(),
        }
