"""How to look for duplicates."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from data_engine.errors import ConfigError, UsageError

DEFAULT_MASKS_IOU = 0.9
LARGEST_THRESHOLD = 16
DEFAULT_THRESHOLD = 6  # bits; docs/deduplication.md has the table that it was chosen by
DEFAULT_COSINE = 0.98


@dataclass(frozen=True, slots=True, kw_only=True)
class SemanticSettings:
    """How to compare the embeddings of the images that the other stages keep."""

    model: str | None = None  # a known model, a checkpoint file or a URL; None: the one that made the masks
    cosine: float = DEFAULT_COSINE  # alike: the cosine of two embeddings, less the set's mean, exceeds this
    device: str = "auto"
    input: str | None = None  # the dataset's input, signed anew, where it was a signed link

    def __post_init__(self) -> None:
        """Raises ConfigError."""
        if not 0 < self.cosine < 1:
            raise ConfigError(f"cosine {self.cosine}: between 0 and 1, such as {DEFAULT_COSINE}")


@dataclass(frozen=True, slots=True, kw_only=True)
class DedupSettings:
    """What counts as a duplicate, and what this machine may spend."""

    threshold: int | None = DEFAULT_THRESHOLD  # differing bits of the perceptual hash; None: equal bytes only
    masks_iou: float | None = None  # compare the masks of each image too; duplicates from this IoU on
    semantic: SemanticSettings | None = None  # compare embeddings too; they are computed from the originals
    engine: Literal["local", "ray"] = "local"
    ray_address: str | None = None  # None: RAY_ADDRESS, the cluster this runs in, or a new one on this machine
    threads: int | None = None  # None: DuckDB's default, all cores
    processes: int = 1  # that compare masks; more of them need a main module that can be imported, as any spawned ones
    memory: str | None = None  # "4GB"; None: DuckDB's default, 80 % of the machine's
    temp_folder: str | None = None  # where what does not fit goes; None: the system's

    def __post_init__(self) -> None:
        """Raises ConfigError, UsageError."""
        if self.threshold is not None and not 0 <= self.threshold <= LARGEST_THRESHOLD:
            raise ConfigError(
                f"threshold {self.threshold}: differing bits, from 0 to {LARGEST_THRESHOLD}; unrelated photographs "
                "differ in about 32 of 64"
            )
        if self.temp_folder is not None and not Path(self.temp_folder).is_dir():
            raise ConfigError(f"temp folder {self.temp_folder}: no such folder")
        if self.masks_iou is not None and not 0 < self.masks_iou < 1:
            raise ConfigError(f"mask IoU {self.masks_iou}: between 0 and 1, such as {DEFAULT_MASKS_IOU}")
        if self.semantic is not None and self.engine == "ray":
            raise UsageError("the semantic stage runs on one machine: leave out --engine ray, or --semantic")

    def parameters(self) -> dict[str, Any]:
        """What decides the rows, as JSON values."""
        return {"threshold": self.threshold, "keep": "largest, most masks, smallest id", "masks_iou": self.masks_iou}
