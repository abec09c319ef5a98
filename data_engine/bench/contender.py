"""What takes part in a benchmark: something that generates all masks of an image."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from data_engine.bench.photographs import Photograph

Records = list[dict[str, Any]]  # as segment-anything returns them, with COCO's compressed run lengths

# In the order in which an image passes through them. Each contender has some of them.
STAGES = (
    "decode",
    "resize",
    "encode",
    "prompt decode",
    "masks",
    "upsample + score",
    "suppress",
    "RLE",
    "regions",
    "write",
    "other",
)
OUTSIDE = ("decode", "write")  # before and after what `generate` does


class Contender(Protocol):
    name: str

    def generate(self, image: np.ndarray) -> Any:
        """HxWx3 uint8 -> its masks with run lengths on the host: what is timed end to end."""
        ...

    def records(self, generated: Any) -> Records:
        """What `generate` returned, to be compared. Some contenders leave out scores."""
        ...

    def stages(self, photograph: Photograph) -> dict[str, float]:
        """Seconds by stage of one image, from its file's bytes to bytes to be stored; empty where nobody can tell."""
        ...
