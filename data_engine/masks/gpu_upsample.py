"""`Upsampler` for a GPU: all masks of a chunk at once, with one answer brought back to the host.

The arithmetic is that of `upsample`: both interpolation steps composed into one weight matrix a side. A pixel's row of
that matrix holds a few neighbouring weights (three when the crop goes through the model's frame), so a pixel is
computed where it is needed and never stored: `measure` writes sums, `runs` one byte a pixel of the masks' boxes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from rlemasklib import RLEMask
from torch import Tensor

from data_engine.masks import rle
from data_engine.masks.grid import CropWindow
from data_engine.masks.upsample import Measured, Region, axis_matrix

# Bytes of pixels at a time. A GPU is busy for many times a launch's cost with these, they are a small part of its
# memory, and `nonzero` is far from the 2^31 elements that it fails at.
_BUFFER_BYTES = 2**26

_EMPTY = np.zeros(0, np.int64)


@dataclass(frozen=True, slots=True)
class _Taps:
    """One side's interpolation: each pixel is a weighted sum of a few consecutive logits."""

    first: Tensor  # pixels, int32: the first logit of each pixel
    weights: Tensor  # taps x pixels, float32
    reach: Tensor  # 2 x logits, int32: the first pixel that a logit reaches and one past the last; (pixels, 0) if none
    cells: np.ndarray  # 2 x pixels: the first logit of each pixel with a weight, and one past the last

    @property
    def pixels(self) -> int:
        return len(self.first)

    def reached(self, active: Tensor) -> tuple[Tensor, Tensor]:
        """active KxL bool -> the first pixel that each mask's active logits reach and one past the last, each K."""
        first, stop = self.reach
        return torch.where(active, first, self.pixels).amin(1), torch.where(active, stop, 0).amax(1)

    def slices(self, first: np.ndarray, stop: np.ndarray) -> list[slice]:
        """The logits that pixels from `first` up to `stop`, exclusive, are computed from; K each."""
        begin = np.where(first < stop, self.cells[0][first], 0)
        end = np.where(first < stop, self.cells[1][stop - 1], 0)
        return list(map(slice, begin.tolist(), end.tolist()))


class GpuUpsampler:
    """From the model's logits grid to the pixels of one crop shape, with Triton."""

    def __init__(
        self,
        logits_size: int,
        image_size: int,
        input_shape: tuple[int, int],
        shape: tuple[int, int],
        device: torch.device,
    ) -> None:
        """image_size: side of the model's frame; input_shape: (height, width) of the crop inside the frame;
        shape: (height, width) of the crop in pixels. Raises ImportError where Triton is not installed."""
        from data_engine.masks import gpu_kernels

        self._kernels = gpu_kernels
        self._side = logits_size
        self._device = device
        self._rows = _taps(logits_size, image_size, input_shape[0], shape[0], device)
        self._columns = _taps(logits_size, image_size, input_shape[1], shape[1], device)

    def measure(self, logits: Tensor, threshold: float, offset: float) -> Measured:
        """logits KxLxL float32 -> stability, area and box at `threshold`, with the stability score's `offset`.

        The host waits for the device once.
        """
        logits = logits.contiguous()
        regions = self._regions(logits, threshold - offset)
        facts = self._survey(logits, regions, threshold, offset)
        host = torch.cat([facts, regions], 1).cpu().numpy()
        high, low, area = host[:, :3].T
        boxes = np.where(area[:, None] > 0, host[:, 3:7], 0)
        with np.errstate(invalid="ignore"):
            stability = high.astype(np.float32) / low.astype(np.float32)
        return Measured(stability, area, boxes, self._regions_with_cells(host[:, 7:]))

    def keep(self, logits: Tensor, regions: Sequence[Region], chosen: Sequence[int]) -> list[Tensor]:  # noqa: ARG002
        """Of some masks what `runs` will need: copies, so that the rest of KxLxL logits can go."""
        return [logits[i].clone(memory_format=torch.contiguous_format) for i in chosen]

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

        cells: what `keep` kept; regions: outside of these no pixel exceeds the threshold; window: the crop. All run
        boundaries come to the host in one copy; before that it waits for their number, once a `_BUFFER_BYTES`.
        """
        image = height * width + 1  # positions in an image, the end of the last run included
        boxes = np.array([(r.x0, r.y0, r.x1, r.y1) for r in regions], np.int64).reshape(-1, 4)
        pieces = _pieces(boxes, _BUFFER_BYTES)
        mask, x, columns, y, rows = pieces.T
        sizes = columns * (rows + 2)
        chunks = list(_chunks(sizes, _BUFFER_BYTES))
        offsets = np.concatenate([_EMPTY, *(np.cumsum(sizes[chunk]) - sizes[chunk] for chunk in chunks)])
        addresses = np.array([grid.data_ptr() for grid in cells], np.int64)
        base = mask * image + (window.x0 + x) * height + window.y0 + y
        table = torch.from_numpy(np.column_stack([addresses[mask], x, columns, y, rows, offsets, base]))
        table = table.to(self._device, non_blocking=True)
        found = [self._boundaries(table, chunk, int(sizes[chunk].sum()), threshold, height) for chunk in chunks]
        positions = torch.cat(found).cpu().numpy() if found else _EMPTY
        first = np.arange(len(boxes)) * image
        of_masks = np.split(positions, np.searchsorted(positions, first[1:])) if len(boxes) else []
        return [
            rle.from_boundaries(of_mask - start, height, width)
            for of_mask, start in zip(of_masks, first.tolist(), strict=True)
        ]

    def _regions(self, logits: Tensor, low: float) -> Tensor:
        """Kx4 int32, x0, y0, x1, y1: the box of pixels that each mask's logits above `low` reach, zeros if none."""
        x0, x1 = self._columns.reached(logits.amax(1) > low)
        y0, y1 = self._rows.reached(logits.amax(2) > low)
        return torch.stack([x0, y0, x1, y1], 1) * ((x0 < x1) & (y0 < y1))[:, None]

    def _regions_with_cells(self, boxes: np.ndarray) -> list[Region]:
        x0, y0, x1, y1 = boxes.T
        cells_y, cells_x = self._rows.slices(y0, y1), self._columns.slices(x0, x1)
        return list(map(Region, *boxes.T.tolist(), cells_y, cells_x))

    def _survey(self, logits: Tensor, regions: Tensor, threshold: float, offset: float) -> Tensor:
        """Kx7 int64: pixels above high, low and threshold, and the box of the last."""
        kernels = self._kernels
        facts = torch.empty(len(logits), kernels.PARTS, 7, dtype=torch.int32, device=self._device)
        if len(logits):
            with torch.cuda.device_of(logits):
                kernels.survey[(len(logits), kernels.PARTS)](
                    logits,
                    regions,
                    *self._sides(),
                    threshold - offset,
                    threshold,
                    threshold + offset,
                    facts,
                    **self._constants(),
                )
        return torch.cat([facts[..., :3].sum(1), facts[..., 3:5].amin(1), facts[..., 5:].amax(1)], 1)

    def _boundaries(self, pieces: Tensor, chunk: slice, size: int, threshold: float, height: int) -> Tensor:
        """Starts and ends of the runs of a chunk of the pieces, as positions in all masks' images one after another."""
        flat = torch.empty(size, dtype=torch.uint8, device=self._device)
        with torch.cuda.device_of(flat):
            self._kernels.write_columns[(chunk.stop - chunk.start, self._kernels.PARTS)](
                pieces, chunk.start, *self._sides(), threshold, flat, **self._constants()
            )
        changes = (flat[1:] ^ flat[:-1]).nonzero()[:, 0]
        _, _, _, _, rows, offsets, base = pieces[chunk].T.contiguous()
        piece = torch.searchsorted(offsets, changes, right=True) - 1
        changes -= offsets[piece]
        padded = rows[piece] + 2
        # Column c starts at c * padded in the piece, at c * height in the image.
        return base[piece] + changes + changes // padded * (height - padded)

    def _sides(self) -> tuple[Tensor | int, ...]:
        rows, columns = self._rows, self._columns
        return rows.first, rows.weights, rows.pixels, columns.first, columns.weights, columns.pixels

    def _constants(self) -> dict[str, int]:
        return {
            "SIDE": self._side,
            "ROW_TAPS": len(self._rows.weights),
            "COLUMN_TAPS": len(self._columns.weights),
            "PARTS": self._kernels.PARTS,
            "LINES": self._kernels.LINES,
            "ALONG": self._kernels.ALONG,
        }


def _pieces(boxes: np.ndarray, limit: int) -> np.ndarray:
    """Boxes Kx4 int64, right and bottom exclusive -> Px5: mask, first column, columns, first row, rows.

    Boxes above `limit` bytes are cut up, empty ones left out.
    """
    x0, y0, x1, y1 = boxes.T
    columns, rows = x1 - x0, y1 - y0
    widest = np.maximum(1, limit // (rows + 2))
    count = np.where(rows > 0, -(-columns // widest), 0)
    mask = np.repeat(np.arange(len(boxes)), count)
    done = (np.arange(len(mask)) - (np.cumsum(count) - count)[mask]) * widest[mask]
    return np.column_stack(
        [mask, x0[mask] + done, np.minimum(widest[mask], columns[mask] - done), y0[mask], rows[mask]]
    )


def _chunks(sizes: np.ndarray, limit: int) -> Iterator[slice]:
    """Consecutive pieces that together stay within `limit`, or a single one."""
    ends = np.cumsum(sizes)
    start = 0
    while start < len(sizes):
        stop = int(np.searchsorted(ends, ends[start] - sizes[start] + limit, side="right"))
        yield slice(start, max(start + 1, stop))
        start = max(start + 1, stop)


@lru_cache(maxsize=64)
def _taps(logits: int, frame: int, kept: int, pixels: int, device: torch.device) -> _Taps:
    """The non-zero weights of `upsample`'s matrix for one side."""
    matrix, reach = axis_matrix(logits, frame, kept, pixels, torch.device("cpu"))
    weights = matrix.numpy()
    used = weights != 0
    first, stop = used.argmax(1), logits - used[:, ::-1].argmax(1)
    taps = int((stop - first).max())
    start = np.minimum(first, logits - taps)  # so that no pixel reads past the last logit: what is added weighs nothing
    taken = np.take_along_axis(weights, start[:, None] + np.arange(taps), 1)
    return _Taps(
        first=torch.from_numpy(start.astype(np.int32)).to(device),
        weights=torch.from_numpy(taken.T.copy()).to(device),
        reach=torch.from_numpy(reach.T.astype(np.int32)).to(device),
        cells=np.stack([first, stop]),
    )
