"""Low-resolution logits -> full-resolution facts (stability, area, box, runs), exactly, touching few pixels.

The reference interpolates every mask twice at full size (256 -> 1024 -> cut off the padding -> image size). Bilinear
interpolation is linear and separable, so both steps together are one small matrix a side; and it is a convex
combination, so where every contributing logit lies at or below the lowest threshold asked about, no pixel can exceed
it. Only the box of the logits above that threshold is ever computed, in bands of columns of bounded size. One-step
interpolation would be simpler and wrong: it moves hundreds of pixels a mask.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.util import find_spec
from typing import TYPE_CHECKING

import numpy as np
import torch
from rlemasklib import RLEMask
from torch import Tensor
from torch.nn import functional as F

from data_engine.masks import rle
from data_engine.masks.grid import CropWindow
from data_engine.masks.tiles import TileCounter
from data_engine.sam.device_errors import is_out_of_memory, loses_device

if TYPE_CHECKING:
    from data_engine.masks.gpu_upsample import GpuUpsampler

log = logging.getLogger(__name__)

# Bytes of float32 logits at a time, whatever the image size: what the CPU's cache holds, elsewhere what fills a GPU.
_BAND_BYTES = {"cpu": 2**21}
_GPU_BAND_BYTES = 2**25


@dataclass(frozen=True, slots=True)
class Region:
    """A box of pixels of a crop (right and bottom exclusive) and the box of logits that they are interpolated from."""

    x0: int
    y0: int
    x1: int
    y1: int
    cells_y: slice
    cells_x: slice

    @property
    def height(self) -> int:
        return self.y1 - self.y0


@dataclass(frozen=True, slots=True)
class Measured:
    """Facts about N masks at full resolution of their crop, on the host."""

    stability: np.ndarray  # N float32; NaN where the mask is empty even at the low threshold
    area: np.ndarray  # N int64 pixels above the threshold
    boxes: np.ndarray  # Nx4 int64 (x0, y0, x1, y1) in the crop, last pixels inside; zeros where the mask is empty
    regions: list[Region]  # outside of these no pixel exceeds threshold - offset

    def box_region(self, index: int) -> Region:
        """Of one mask: outside of this no pixel exceeds the threshold."""
        region, (x0, y0, x1, y1) = self.regions[index], self.boxes[index].tolist()
        if not self.area[index]:
            return replace(region, x1=region.x0, y1=region.y0)
        return replace(region, x0=x0, y0=y0, x1=x1 + 1, y1=y1 + 1)


class Upsampler:
    """From the model's logits grid to the pixels of one crop shape."""

    def __init__(
        self,
        logits_size: int,
        image_size: int,
        input_shape: tuple[int, int],
        shape: tuple[int, int],
        device: torch.device,
    ) -> None:
        """image_size: side of the model's frame; input_shape: (height, width) of the crop inside the frame;
        shape: (height, width) of the crop in pixels."""
        self._rows, self._row_reach = axis_matrix(logits_size, image_size, input_shape[0], shape[0], device)
        self._columns, self._column_reach = axis_matrix(logits_size, image_size, input_shape[1], shape[1], device)
        self._tiles = TileCounter(self._rows, self._columns)

    def measure(self, logits: Tensor, threshold: float, offset: float) -> Measured:
        """logits NxLxL float32 -> stability, area and box at `threshold`, with the stability score's `offset`."""
        counts = self._tiles.count(logits, (threshold, threshold + offset, threshold - offset))
        area, high, low = counts.above
        with np.errstate(invalid="ignore"):
            stability = high.astype(np.float32) / low.astype(np.float32)
        return Measured(stability, area, counts.boxes, self._regions(logits > threshold - offset))

    def keep(self, logits: Tensor, regions: Sequence[Region], chosen: Sequence[int]) -> list[Tensor]:
        """Of some masks what `runs` will need: copies, so that the rest of NxLxL logits can go."""
        return [logits[i, regions[i].cells_y, regions[i].cells_x].clone() for i in chosen]

    def runs(
        self,
        cells: Sequence[Tensor],
        regions: Sequence[Region],
        threshold: float,
        window: CropWindow,
        height: int,
        width: int,
    ) -> list[RLEMask]:
        """Masks of one crop -> their runs in the image of height x width.

        cells: what `keep` kept; regions: outside of these no pixel exceeds the threshold; window: the crop.
        """
        return [
            self._runs(mask, region, threshold, window, height, width)
            for mask, region in zip(cells, regions, strict=True)
        ]

    def _runs(
        self, cells: Tensor, region: Region, threshold: float, window: CropWindow, height: int, width: int
    ) -> RLEMask:
        positions = [np.zeros(0, np.int64)]
        x = window.x0 + region.x0
        for band in self._bands(cells, region):
            positions.append(rle.boundaries(band > threshold, x, window.y0 + region.y0, height))
            x += len(band)
        return rle.from_boundaries(np.concatenate(positions), height, width)

    def _regions(self, active: Tensor) -> list[Region]:
        """active NxLxL bool -> for each mask the box of pixels that its active logits reach."""
        rows, columns = active.any(2).cpu().numpy(), active.any(1).cpu().numpy()
        return [
            Region(x0, y0, x1, y1, cells_y, cells_x)
            for (y0, y1, cells_y), (x0, x1, cells_x) in zip(
                (_reached(row, self._row_reach) for row in rows),
                (_reached(column, self._column_reach) for column in columns),
                strict=True,
            )
        ]

    def _bands(self, cells: Tensor, region: Region) -> Iterator[Tensor]:
        """The region's logits at full resolution, transposed, in bands of columns: each bxH."""
        rows = self._rows[region.y0 : region.y1, region.cells_y] @ cells
        step = max(1, _BAND_BYTES.get(rows.device.type, _GPU_BAND_BYTES) // (4 * max(1, region.height)))
        for start in range(region.x0, region.x1, step):
            stop = min(start + step, region.x1)
            used = _overlapping(self._column_reach[region.cells_x], start, stop)
            yield self._columns[start:stop, region.cells_x][:, used] @ rows[:, used].mT


@lru_cache(maxsize=32)
def upsampler_for(
    logits_size: int, image_size: int, input_shape: tuple[int, int], shape: tuple[int, int], device: torch.device
) -> Upsampler | GpuUpsampler:
    """One for each shape of a crop: images of a dataset share them. On a GPU with Triton, where that works."""
    if device.type == "cuda" and _triton_works(device):
        from data_engine.masks.gpu_upsample import GpuUpsampler

        return GpuUpsampler(logits_size, image_size, input_shape, shape, device)
    return Upsampler(logits_size, image_size, input_shape, shape, device)


@lru_cache(maxsize=32)
def _triton_works(device: torch.device) -> bool:
    """torch brings Triton along, but not the C compiler and the headers of Python that it needs to start a kernel."""
    if find_spec("triton") is None:
        return False
    from data_engine.masks.gpu_upsample import GpuUpsampler

    try:
        GpuUpsampler(4, 4, (4, 4), (4, 4), device).measure(torch.zeros(1, 4, 4, device=device), 0.0, 1.0)
    except Exception as error:  # of a missing or failing compiler, of a folder for its cache that cannot be written
        if is_out_of_memory(error) or loses_device(error, device):
            raise
        reason = (str(error).splitlines() or [""])[0]
        log.warning(
            "Triton does not work here (%s: %s): masks get to full size more slowly. Most often a C compiler is "
            "missing, or Python's headers: on Debian the packages gcc, libc6-dev and python3-dev",
            type(error).__name__,
            reason,
        )
        return False
    return True


def _reached(active: np.ndarray, reach: np.ndarray) -> tuple[int, int, slice]:
    """The pixels that active logits reach along one side, and the logits that reach those pixels."""
    cells = np.flatnonzero(active)
    if len(cells):
        between = reach[cells[0] : cells[-1] + 1]
        first, last = between[:, 0].min(), between[:, 1].max()
        if first < last:
            return int(first), int(last), _overlapping(reach, first, last)
    return 0, 0, slice(0, 0)


def _overlapping(reach: np.ndarray, first: int, last: int) -> slice:
    """The logits that reach pixels from `first` up to `last`, exclusive."""
    contributing = np.flatnonzero((reach[:, 0] < last) & (reach[:, 1] > first))
    return slice(int(contributing[0]), int(contributing[-1]) + 1)


@lru_cache(maxsize=32)
def axis_matrix(logits: int, frame: int, kept: int, pixels: int, device: torch.device) -> tuple[Tensor, np.ndarray]:
    """Both interpolation steps along one side as one matrix, pixels x logits, and which pixels each logit reaches.

    The weights are read off torch's own interpolation of an identity matrix, so they are its weights to the bit.
    Reach: logits x 2, first pixel and one past the last; an empty range is (pixels, 0).
    """
    identity = torch.eye(logits)[None]
    middle = F.interpolate(identity, frame, mode="linear", align_corners=False)[..., :kept]
    matrix = F.interpolate(middle, pixels, mode="linear", align_corners=False)[0].T.contiguous()
    used = matrix.numpy() != 0
    first = np.where(used.any(0), used.argmax(0), pixels)
    last = np.where(used.any(0), pixels - used[::-1].argmax(0), 0)
    return matrix.to(device), np.stack([first, last], 1)
