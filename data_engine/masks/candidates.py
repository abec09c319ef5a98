"""Masks on their way through the filters: columns of facts, and for each mask its pixels in the cheapest form."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from rlemasklib import RLEMask
from torch import Tensor

from data_engine.masks.gpu_upsample import GpuUpsampler
from data_engine.masks.grid import CropWindow
from data_engine.masks.upsample import Region, Upsampler


@dataclass(frozen=True, slots=True)
class Patch:
    """A mask that has not been put into runs yet, because most candidates never need to be."""

    cells: Tensor  # its low-resolution logits, as `upsampler` keeps them
    region: Region  # the box of its pixels, in the crop
    window: CropWindow
    upsampler: Upsampler | GpuUpsampler


def put_into_runs(masks: list[Patch | RLEMask], threshold: float, height: int, width: int) -> list[RLEMask]:
    """Masks of an image of height x width, those of a crop together."""
    done = {i: mask for i, mask in enumerate(masks) if isinstance(mask, RLEMask)}
    by_crop: defaultdict[tuple[CropWindow, int], list[tuple[int, Patch]]] = defaultdict(list)
    for i, mask in enumerate(masks):
        if isinstance(mask, Patch):
            by_crop[mask.window, id(mask.upsampler)].append((i, mask))
    for (window, _), group in by_crop.items():
        cells, regions = [patch.cells for _, patch in group], [patch.region for _, patch in group]
        runs = group[0][1].upsampler.runs(cells, regions, threshold, window, height, width)
        done.update({i: mask for (i, _), mask in zip(group, runs, strict=True)})
    return [done[i] for i in range(len(masks))]


@dataclass(slots=True)
class Candidates:
    """N masks of one image, in the image's frame."""

    boxes: np.ndarray  # Nx4 int64 (x0, y0, x1, y1), last pixels inside
    predicted_iou: np.ndarray  # N float32
    stability: np.ndarray  # N float32
    area: np.ndarray  # N int64
    points: np.ndarray  # Nx2 float64 (x, y)
    window: np.ndarray  # N int64, index into the image's crop windows
    verdict: np.ndarray  # N int8, each a `rejects.Verdict`
    number: np.ndarray  # N int64, the place among all of the image's; zeros where nobody asks
    masks: list[Patch | RLEMask]
    covers: Tensor | None = None
    """NxP bool on the device: the points of the grid that each mask covers, where a window was asked for it. Not kept
    by `select` and `concatenate`."""

    def __len__(self) -> int:
        return len(self.masks)

    def patch_bytes(self) -> int:
        """Bytes of pixels held until they are put into runs or dropped."""
        return sum(mask.cells.nbytes for mask in self.masks if isinstance(mask, Patch))

    def select(self, keep: np.ndarray) -> Candidates:
        """keep: N bool, or indices in the order wanted."""
        indices = np.flatnonzero(keep) if keep.dtype == bool else keep
        columns: dict[str, Any] = {name: getattr(self, name)[indices] for name in _COLUMNS}
        return Candidates(**columns, masks=[self.masks[i] for i in indices])

    def by_rows_of_points(self) -> Candidates:
        """In the order in which a grid of points is prompted, row by row; the masks of a point keep theirs."""
        return self.select(np.lexsort(self.points.T))

    @classmethod
    def concatenate(cls, parts: Sequence[Candidates]) -> Candidates:
        columns: dict[str, Any] = {name: np.concatenate([getattr(part, name) for part in parts]) for name in _COLUMNS}
        return cls(**columns, masks=[mask for part in parts for mask in part.masks])


_COLUMNS = [field.name for field in fields(Candidates) if field.name not in ("masks", "covers")]
