"""What a training image is: pixels, and for every pixel the nested regions it belongs to."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Scene:
    """Levels go from whole over part to subpart; each level's regions lie within one region of the level before.

    An id has a meaning within its level only; 0 means that no region of this level is known there.
    """

    image: np.ndarray  # HxWx3 uint8
    levels: np.ndarray  # 3xHxW int32
