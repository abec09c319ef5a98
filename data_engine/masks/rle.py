"""Run-length encoding: from the pixels of a window to COCO runs of the whole image.

COCO's order is column-major; the first run counts zeros; `counts` strings are pycocotools' compressed form. The run
arithmetic (compression, components, overlaps) is rlemasklib's, byte-identical to pycocotools and several times faster.
"""

from __future__ import annotations

import numpy as np
from rlemasklib import RLEMask
from torch import Tensor
from torch.nn import functional as F


def boundaries(columns: Tensor, first_column: int, first_row: int, height: int) -> np.ndarray:
    """Where runs of ones start and end, as positions in the column-major order of an image of `height` rows.

    columns: WxH bool, the transposed window whose top-left pixel is (first_column, first_row). Returns an even number
    of increasing positions: start, end, start, end, ... with ends exclusive; touching runs are not yet merged.
    """
    rows = columns.shape[1]
    flat = F.pad(columns, (1, 1)).flatten()  # a zero before and after each column, so that runs end with it
    changes = (flat[1:] ^ flat[:-1]).nonzero()[:, 0].cpu().numpy()
    column, row = np.divmod(changes, rows + 2)
    return (first_column + column) * height + first_row + row


def from_boundaries(positions: np.ndarray, height: int, width: int) -> RLEMask:
    """Run starts and ends in column-major order -> runs of the whole image."""
    ends, starts = positions[1:-1:2], positions[2::2]
    touching = np.flatnonzero(ends == starts)
    positions = np.delete(positions, np.concatenate([2 * touching + 1, 2 * touching + 2]))
    counts = np.diff(positions, prepend=0, append=height * width)
    if counts[-1] == 0:
        counts = counts[:-1]
    return RLEMask.from_counts(counts.astype(np.uint32), (height, width))


def counts_string(runs: RLEMask) -> str:
    """COCO's compressed counts, ASCII."""
    return runs.to_dict()["counts"].decode("ascii")


def from_counts_string(counts: str, height: int, width: int) -> RLEMask:
    return RLEMask.from_dict({"size": [height, width], "counts": counts.encode("ascii")})


def encode(mask: np.ndarray) -> RLEMask:
    """HxW bool -> runs."""
    return RLEMask.from_array(np.asfortranarray(mask))


def decode(runs: RLEMask) -> np.ndarray:
    """Runs -> HxW bool."""
    return runs.to_array().astype(bool)


def box(runs: RLEMask) -> tuple[int, int, int, int]:
    """(x0, y0, x1, y1) with x1, y1 the last pixels inside (the reference's convention); zeros for an empty mask."""
    x, y, w, h = (int(value) for value in runs.bbox())
    return (x, y, x + w - 1, y + h - 1) if w and h else (0, 0, 0, 0)
