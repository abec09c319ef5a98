"""How to look for duplicates."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from data_engine.errors import ConfigError

DEFAULT_MASKS_IOU = 0.9
LARGEST_THRESHOLD = 16
DEFAULT_THRESHOLD = 6  # bits; docs/deduplication.md has the table that it was chosen by


@dataclass(frozen=True, slots=True, kw_only=True)
class DedupSettings:
    """What counts as a duplicate, and what this machine may spend."""

    threshold: int | None = DEFAULT_THRESHOLD  # differing bits of the perceptual hash; None: equal bytes only
    masks_iou: float | None = None  # compare the masks of each image too; duplicates from this IoU on
    engine: Literal["local", "ray"] = "local"
    ray_address: str | None = None  # None: RAY_ADDRESS, the cluster this runs in, or a new one on this machine
    threads: int | None = None  # None: DuckDB's default, all cores
    memory: str | None = None  # "4GB"; None: DuckDB's default, 80 % of the machine's
    temp_folder: str | None = None  # where what does not fit goes; None: the system's

    def __post_init__(self) -> None:
        """Raises ConfigError."""
        if self.threshold is not None and not 0 <= self.threshold <= LARGEST_THRESHOLD:
            raise ConfigError(
                f"threshold {self.threshold}: differing bits, from 0 to {LARGEST_THRESHOLD}; unrelated photographs "
                "differ in about 32 of 64"
            )
        if self.temp_folder is not None and not Path(self.temp_folder).is_dir():
            raise ConfigError(f"temp folder {self.temp_folder}: no such folder")
        if self.masks_iou is not None and not 0 < self.masks_iou < 1:
            raise ConfigError(f"mask IoU {self.masks_iou}: between 0 and 1, such as {DEFAULT_MASKS_IOU}")

    def parameters(self) -> dict[str, Any]:
        """What decides the rows, as JSON values."""
        return {"threshold": self.threshold, "keep": "largest, most masks, smallest id", "masks_iou": self.masks_iou}
