"""Counting the pixels of a mask above some levels, where most of them need not be computed.

A pixel is a weighted mean of a few neighbouring logits. So where all logits of a tile lie above a level, all pixels of
it do, and where none does, none can. Of a mask only the tiles along its border are left, and those are computed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

_SIDE = 96  # pixels of a tile, about: smaller ones follow a border more closely, larger ones are fewer
_BATCH_BYTES = 2**21  # of pixels computed at once: what a CPU's cache holds


@dataclass(frozen=True, slots=True)
class TileCounts:
    """Of K masks."""

    above: np.ndarray  # levels x K int64 pixels above each level
    boxes: np.ndarray  # Kx4 int64 (x0, y0, x1, y1) of those above the first level, last pixels inside; zeros if none


@dataclass(frozen=True, slots=True)
class _Side:
    """One side of a crop, cut so that every tile has `step` logits of its own and reads some of the next."""

    step: int
    window: int  # logits that a tile reads
    starts: np.ndarray  # tiles + 1: first pixel of each
    weights: dict[int, Tensor]  # pixels of a tile -> its rows of the matrix, tiles x pixels x window; others are zero

    @property
    def sizes(self) -> np.ndarray:
        return np.diff(self.starts)


class TileCounter:
    """For one pair of interpolation matrices (pixels x logits, rows and columns)."""

    def __init__(self, rows: Tensor, columns: Tensor) -> None:
        self._rows, self._columns = _cut(rows), _cut(columns)

    def count(self, logits: Tensor, levels: Sequence[float]) -> TileCounts:
        """logits KxLxL float32 -> pixels above each level, and the box of those above the first."""
        masks = len(logits)
        low, high, windows = self._extremes(logits)
        sizes = self._rows.sizes[:, None] * self._columns.sizes
        full = [low > np.float32(level) for level in levels]
        decided = np.all([each | (high <= np.float32(level)) for each, level in zip(full, levels, strict=True)], 0)
        above = np.array([np.where(each & decided, sizes, 0).sum((1, 2)) for each in full], np.int64)
        box = _Boxes(masks)
        of_mask, y, x = np.nonzero(full[0] & decided & (sizes > 0))
        tops, lefts = self._rows.starts, self._columns.starts
        box.add(of_mask, lefts[x], tops[y], lefts[x + 1] - 1, tops[y + 1] - 1)
        for (of_mask, y, x), pixels in self._compute(windows, np.nonzero(~decided & (sizes > 0))):
            for i, level in enumerate(levels):
                for mask, count in _counts(of_mask, pixels, level):
                    above[i, mask] += count
            in_row, in_column = ((most > levels[0]).cpu().numpy() for most in _most(pixels))
            real = in_row.any(1)
            x0, x1 = _ends(in_column[real], lefts[x[real]])
            y0, y1 = _ends(in_row[real], tops[y[real]])
            box.add(of_mask[real], x0, y0, x1, y1)
        return TileCounts(above, box.found())

    def _extremes(self, logits: Tensor) -> tuple[np.ndarray, np.ndarray, Tensor]:
        """-> the least and the largest logit that each tile reads, Kxtilesxtiles, and a view of what they read."""
        rows, columns = self._rows, self._columns
        tall, wide = ((len(side.starts) - 2) * side.step + side.window for side in (rows, columns))
        logits = logits[:, :tall, :wide]
        _, height, width = logits.shape
        padded = logits.new_empty(len(logits), tall, wide)  # what is added at the ends has no weight
        padded[:, :height, :width] = logits
        padded[:, height:, :width] = logits[:, -1:]
        padded[:, :, width:] = padded[:, :, width - 1 : width]
        by_row = padded.unfold(1, rows.window, rows.step)
        low = by_row.amin(-1).unfold(2, columns.window, columns.step).amin(-1)
        high = by_row.amax(-1).unfold(2, columns.window, columns.step).amax(-1)
        return low.cpu().numpy(), high.cpu().numpy(), by_row.unfold(2, columns.window, columns.step)

    def _compute(
        self, windows: Tensor, tiles: tuple[np.ndarray, ...]
    ) -> Iterator[tuple[tuple[np.ndarray, ...], Tensor]]:
        """(mask, row and column of some tiles of one size, their pixels TxHxW), until all tiles were there."""
        rows, columns = self._rows, self._columns
        of_mask, y, x = tiles
        heights, widths = rows.sizes[y], columns.sizes[x]
        for height, width in set(zip(heights.tolist(), widths.tolist(), strict=True)):
            same = np.flatnonzero((heights == height) & (widths == width))
            batch = max(1, _BATCH_BYTES // (4 * height * width))
            for start in range(0, len(same), batch):
                some = same[start : start + batch]
                mask, row, column = (torch.from_numpy(each[some]).to(windows.device) for each in tiles)
                cells = rows.weights[height][row] @ windows[mask, row, column]
                yield (of_mask[some], y[some], x[some]), cells @ columns.weights[width][column].mT


class _Boxes:
    """Bounding boxes that grow."""

    def __init__(self, count: int) -> None:
        self._first = np.full((count, 2), np.iinfo(np.int64).max)
        self._last = np.full((count, 2), -1)

    def add(self, of_mask: np.ndarray, x0: np.ndarray, y0: np.ndarray, x1: np.ndarray, y1: np.ndarray) -> None:
        np.minimum.at(self._first, of_mask, np.stack([x0, y0], 1))
        np.maximum.at(self._last, of_mask, np.stack([x1, y1], 1))

    def found(self) -> np.ndarray:
        empty = self._last[:, :1] < 0
        return np.where(empty, 0, np.concatenate([self._first, self._last], 1))


def _counts(of_mask: np.ndarray, pixels: Tensor, level: float) -> Iterator[tuple[int, int]]:
    """TxHxW pixels of tiles, those of a mask together -> (mask, how many exceed the level)."""
    if pixels.device.type != "cpu":
        yield from zip(of_mask.tolist(), (pixels > level).flatten(1).sum(1).tolist(), strict=True)
        return
    inside = pixels.numpy() > np.float32(level)  # numpy compares and counts several times faster than torch does
    starts = np.flatnonzero(np.diff(of_mask, prepend=-1))
    for start, stop in zip(starts.tolist(), [*starts[1:].tolist(), len(of_mask)], strict=True):
        yield int(of_mask[start]), int(np.count_nonzero(inside[start:stop]))


def _most(pixels: Tensor) -> tuple[Tensor, Tensor]:
    """TxHxW -> the largest of each row TxH and of each column TxW.

    On a CPU torch compares 32 values of a row at once and what is left of it one by one, which takes most of the time:
    here the last 32 are whole again, and overlap those before.
    """
    width = pixels.shape[2]
    whole = width // 32 * 32
    if pixels.device.type != "cpu" or not whole or width - whole <= 8:
        return pixels.amax(2), pixels.amax(1)
    first, last = pixels[..., :whole], pixels[..., width - whole :]
    columns = torch.cat([first.amax(1), last.amax(1)[:, 2 * whole - width :]], 1)
    return torch.maximum(first.amax(2), last.amax(2)), columns


def _ends(inside: np.ndarray, start: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """TxN bool, each with one that is true -> the first and the last of them, counted from `start` (T)."""
    return start + inside.argmax(1), start + inside.shape[1] - 1 - inside[:, ::-1].argmax(1)


def _cut(matrix: Tensor) -> _Side:
    pixels, logits = matrix.shape
    used = matrix.cpu().numpy() != 0
    first, last = used.argmax(1), logits - 1 - used[:, ::-1].argmax(1)
    reached = int(last.max()) + 1
    step = min(max(2, round(_SIDE * reached / pixels)), 32, logits)
    window = step + int((last - first).max())
    tiles = -(-reached // step)
    starts = np.searchsorted(first, np.arange(tiles + 1) * step)
    starts[-1] = pixels
    wide = torch.cat([matrix, matrix.new_zeros(pixels, window)], 1)
    sizes = np.diff(starts)
    weights = {}
    for size in set(sizes.tolist()) - {0}:
        of_size = matrix.new_zeros(tiles, size, window)
        for tile in np.flatnonzero(sizes == size).tolist():
            of_size[tile] = wide[starts[tile] : starts[tile + 1], tile * step : tile * step + window]
        weights[size] = of_size
    return _Side(step, window, starts, weights)
