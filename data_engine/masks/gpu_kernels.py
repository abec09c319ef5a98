"""The two Triton kernels of `gpu_upsample`: survey masks at full resolution, and write their pixels column by column.

Importing this imports Triton; nothing else in the package does. A pixel's value is computed in one place for both
kernels, with explicit fused multiply-adds: left to the compiler, the two could round differently.
"""

# No `from __future__ import annotations`: Triton looks for the class `constexpr` in the annotations.

import triton
import triton.language as tl

# Pixels of a program's tile: 64 along the lines that memory is read or written in, so that a warp's 32 pixels share a
# few 32-byte sectors; 16 lines, so that 4 warps have 8 pixels a lane and the survey's 7 sums stay in registers.
LINES, ALONG = 16, 64

# Programs a mask, each taking every PARTSth tile of its region: enough that 20 masks give each of a large GPU's 132
# processors as many as its registers hold (4 of `survey`), few enough that small masks do not launch many for nothing.
PARTS = 32


@triton.jit
def _values(
    logits: tl.tensor,  # pointer to one mask's SIDE x SIDE logits
    y: tl.tensor,
    x: tl.tensor,
    rows_first: tl.tensor,
    rows_weights: tl.tensor,
    height: tl.tensor,
    columns_first: tl.tensor,
    columns_weights: tl.tensor,
    width: tl.tensor,
    SIDE: tl.constexpr,  # noqa: N803 - Triton's custom for constants
    ROW_TAPS: tl.constexpr,  # noqa: N803
    COLUMN_TAPS: tl.constexpr,  # noqa: N803
) -> tl.tensor:
    """The crop's logits at pixels y and x (two int32 blocks that broadcast against each other): float32."""
    corner = logits + tl.load(rows_first + y) * SIDE + tl.load(columns_first + x)
    value = tl.zeros(corner.shape, tl.float32)
    for i in tl.static_range(COLUMN_TAPS):
        column = tl.zeros(corner.shape, tl.float32)
        for j in tl.static_range(ROW_TAPS):
            weight = tl.broadcast_to(tl.load(rows_weights + j * height + y), corner.shape)
            column = tl.fma(weight, tl.load(corner + (j * SIDE + i)), column)
        weight = tl.broadcast_to(tl.load(columns_weights + i * width + x), corner.shape)
        value = tl.fma(weight, column, value)
    return value


@triton.jit(do_not_specialize=["height", "width"])
def survey(
    logits: tl.tensor,  # KxSIDExSIDE float32
    regions: tl.tensor,  # Kx4 int32: x0, y0, x1, y1, right and bottom exclusive; outside of it nothing is looked at
    rows_first: tl.tensor,  # height int32
    rows_weights: tl.tensor,  # ROW_TAPS x height float32
    height: tl.tensor,
    columns_first: tl.tensor,
    columns_weights: tl.tensor,
    width: tl.tensor,
    low: tl.tensor,
    threshold: tl.tensor,
    high: tl.tensor,
    facts: tl.tensor,  # out: KxPARTSx7 int32
    SIDE: tl.constexpr,  # noqa: N803
    ROW_TAPS: tl.constexpr,  # noqa: N803
    COLUMN_TAPS: tl.constexpr,  # noqa: N803
    PARTS: tl.constexpr,  # noqa: N803
    LINES: tl.constexpr,  # noqa: N803
    ALONG: tl.constexpr,  # noqa: N803
) -> None:
    """Grid (K, PARTS). One part of a mask's facts: pixels above high, low and threshold; of those above threshold the
    lowest x and y (width and height if there are none) and the highest (-1)."""
    mask = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    x0, y0 = tl.load(regions + mask * 4), tl.load(regions + mask * 4 + 1)
    x1, y1 = tl.load(regions + mask * 4 + 2), tl.load(regions + mask * 4 + 3)
    across = tl.cdiv(x1 - x0, ALONG)
    above_high = tl.zeros((LINES, ALONG), tl.int32)
    above_low = tl.zeros((LINES, ALONG), tl.int32)
    above = tl.zeros((LINES, ALONG), tl.int32)
    left, right = above + width, above - 1
    top, bottom = above + height, above - 1
    for tile in range(part, across * tl.cdiv(y1 - y0, LINES), PARTS):
        y = y0 + (tile // across) * LINES + tl.arange(0, LINES)[:, None]
        x = x0 + (tile % across) * ALONG + tl.arange(0, ALONG)[None, :]
        value = _values(
            logits + mask * (SIDE * SIDE),
            tl.minimum(y, y1 - 1),
            tl.minimum(x, x1 - 1),
            rows_first,
            rows_weights,
            height,
            columns_first,
            columns_weights,
            width,
            SIDE,
            ROW_TAPS,
            COLUMN_TAPS,
        )
        valid = (y < y1) & (x < x1)
        inside = valid & (value > threshold)
        above_high += (valid & (value > high)).to(tl.int32)
        above_low += (valid & (value > low)).to(tl.int32)
        above += inside.to(tl.int32)
        left, right = tl.minimum(left, tl.where(inside, x, width)), tl.maximum(right, tl.where(inside, x, -1))
        top, bottom = tl.minimum(top, tl.where(inside, y, height)), tl.maximum(bottom, tl.where(inside, y, -1))
    out = facts + (mask * PARTS + part) * 7
    tl.store(out, tl.sum(above_high))
    tl.store(out + 1, tl.sum(above_low))
    tl.store(out + 2, tl.sum(above))
    tl.store(out + 3, tl.min(left))
    tl.store(out + 4, tl.min(top))
    tl.store(out + 5, tl.max(right))
    tl.store(out + 6, tl.max(bottom))


@triton.jit(do_not_specialize=["height", "width", "first"])
def write_columns(
    pieces: tl.tensor,  # Px7 int64: address of SIDExSIDE float32 logits, x, columns, y, rows, offset, (not used here)
    first: tl.tensor,  # the first of the pieces to write
    rows_first: tl.tensor,  # height int32
    rows_weights: tl.tensor,  # ROW_TAPS x height float32
    height: tl.tensor,
    columns_first: tl.tensor,
    columns_weights: tl.tensor,
    width: tl.tensor,
    threshold: tl.tensor,
    flat: tl.tensor,  # out: uint8
    SIDE: tl.constexpr,  # noqa: N803
    ROW_TAPS: tl.constexpr,  # noqa: N803
    COLUMN_TAPS: tl.constexpr,  # noqa: N803
    PARTS: tl.constexpr,  # noqa: N803
    LINES: tl.constexpr,  # noqa: N803
    ALONG: tl.constexpr,  # noqa: N803
) -> None:
    """Grid (pieces, PARTS). From a piece's offset on, column after column: 0, whether each pixel is inside, 0."""
    piece = pieces + (first + tl.program_id(0)) * 7
    logits = tl.load(piece).to(tl.pointer_type(tl.float32))
    x0, columns = tl.load(piece + 1).to(tl.int32), tl.load(piece + 2).to(tl.int32)
    y0, rows = tl.load(piece + 3).to(tl.int32), tl.load(piece + 4).to(tl.int32)
    flat += tl.load(piece + 5)
    down = tl.cdiv(rows + 2, ALONG)
    for tile in range(tl.program_id(1), down * tl.cdiv(columns, LINES), PARTS):
        column = (tile // down) * LINES + tl.arange(0, LINES)[:, None]
        place = (tile % down) * ALONG + tl.arange(0, ALONG)[None, :]
        value = _values(
            logits,
            y0 + tl.minimum(tl.maximum(place - 1, 0), rows - 1),
            x0 + tl.minimum(column, columns - 1),
            rows_first,
            rows_weights,
            height,
            columns_first,
            columns_weights,
            width,
            SIDE,
            ROW_TAPS,
            COLUMN_TAPS,
        )
        inside = (value > threshold) & (place > 0) & (place <= rows)
        tl.store(flat + column * (rows + 2) + place, inside.to(tl.uint8), (column < columns) & (place < rows + 2))
