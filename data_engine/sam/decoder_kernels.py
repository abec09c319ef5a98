"""Triton kernels for the mask decoder: importing this imports Triton.

A prompt's own image embedding has 4 MiB. One operation at a time it goes through a GPU's memory about sixteen times;
here it is read and written once where the image attends to the tokens (`scatter`), and read once where tokens attend
to it (`gather`: flash attention, arXiv 2205.14135, with the keys made of the values). Its upscaling, four times as
large in between, reads it once and writes masks (`draw`).
"""

# No `from __future__ import annotations`: Triton looks for the class `constexpr` in the annotations.

import triton
import triton.language as tl


@triton.jit
def scatter(
    image: tl.tensor,  # NxC or PxNxC, float32
    image_stride: tl.tensor,  # from a prompt's image to the next: 0 where all share one
    positions: tl.tensor,  # NxC
    rows: tl.tensor,  # PxRxC
    offset: tl.tensor,  # PxR, -inf where a row is none
    added: tl.tensor,  # PxRxC
    weight: tl.tensor,  # C, of the layer norm
    bias: tl.tensor,  # C
    eps: tl.tensor,
    out: tl.tensor,  # out: PxNxC, may be the image
    cells: tl.tensor,  # N
    CHANNELS: tl.constexpr,  # noqa: N803 - Triton's custom for constants
    ROWS: tl.constexpr,  # noqa: N803
    TOKENS: tl.constexpr,  # noqa: N803 - rows of a head
    TILE: tl.constexpr,  # noqa: N803
    SOME: tl.constexpr,  # noqa: N803
    PRECISION: tl.constexpr,  # noqa: N803 - of products, as `tl.dot` names it
) -> None:
    """Grid (tiles, P). norm(image + shares . added), the shares being a softmax over the tokens of each head."""
    cell = tl.program_id(0) * TILE + tl.arange(0, TILE)
    prompt = tl.program_id(1).to(tl.int64)
    there = (cell < cells)[:, None]
    row = tl.arange(0, ROWS)
    image += prompt * image_stride
    rows += prompt * (ROWS * CHANNELS)
    added += prompt * (ROWS * CHANNELS)

    scores = tl.zeros((TILE, ROWS), tl.float32) + tl.load(offset + prompt * ROWS + row)[None, :]
    for start in range(0, CHANNELS, SOME):  # in pieces, or keys and rows would not fit into registers
        some = start + tl.arange(0, SOME)[None, :]
        at = cell[:, None] * CHANNELS + some
        keys = tl.load(image + at, there, 0.0) + tl.load(positions + at, there, 0.0)
        of_rows = tl.load(rows + row[:, None] * CHANNELS + some)
        scores = tl.dot(keys, tl.trans(of_rows), acc=scores, input_precision=PRECISION)
    by_head = tl.reshape(scores, (TILE, ROWS // TOKENS, TOKENS))
    powers = tl.exp(by_head - tl.max(by_head, 2, keep_dims=True))
    shares = tl.reshape(powers / tl.sum(powers, 2, keep_dims=True), (TILE, ROWS))

    channel = tl.arange(0, CHANNELS)[None, :]
    at = cell[:, None] * CHANNELS + channel
    after = tl.dot(shares, tl.load(added + row[:, None] * CHANNELS + channel), input_precision=PRECISION)
    after += tl.load(image + at, there, 0.0)
    after -= (tl.sum(after, 1) / CHANNELS)[:, None]
    scale = tl.rsqrt(tl.sum(after * after, 1) / CHANNELS + eps)
    after = after * scale[:, None] * tl.load(weight + channel) + tl.load(bias + channel)
    tl.store(out + prompt * cells * CHANNELS + at, after, there)


@triton.jit
def gather(
    image: tl.tensor,  # PxNxC, float32
    positions: tl.tensor,  # NxC
    rows: tl.tensor,  # PxRxC
    cells: tl.tensor,  # N
    part: tl.tensor,  # cells of a part
    most: tl.tensor,  # out: PxPARTSxR, the largest score
    total: tl.tensor,  # out: PxPARTSxR, the sum of exp(score - most)
    pooled: tl.tensor,  # out: PxPARTSxRxC, the sum of exp(score - most) times the image's cell
    CHANNELS: tl.constexpr,  # noqa: N803
    ROWS: tl.constexpr,  # noqa: N803
    TILE: tl.constexpr,  # noqa: N803
    PRECISION: tl.constexpr,  # noqa: N803
) -> None:
    """Grid (PARTS, P). Of one part of a prompt's cells what the softmax over all of them needs."""
    prompt = tl.program_id(1).to(tl.int64)
    channel = tl.arange(0, CHANNELS)[None, :]
    row = tl.arange(0, ROWS)
    queries = tl.load(rows + prompt * (ROWS * CHANNELS) + row[:, None] * CHANNELS + channel)
    begin = tl.program_id(0) * part
    end = tl.minimum(begin + part, cells)
    largest = tl.full((ROWS,), float("-inf"), tl.float32)
    powers_sum = tl.zeros((ROWS,), tl.float32)
    sums = tl.zeros((ROWS, CHANNELS), tl.float32)
    for start in range(begin, end, TILE):
        cell = start + tl.arange(0, TILE)
        at = cell[:, None] * CHANNELS + channel
        there = (cell < end)[:, None]
        values = tl.load(image + prompt * cells * CHANNELS + at, there, 0.0)
        keys = values + tl.load(positions + at, there, 0.0)
        scores = tl.dot(queries, tl.trans(keys), input_precision=PRECISION)
        scores = tl.where((cell < end)[None, :], scores, float("-inf"))
        new_largest = tl.maximum(largest, tl.max(scores, 1))
        powers = tl.exp(scores - new_largest[:, None])
        shrink = tl.exp(largest - new_largest)
        powers_sum = powers_sum * shrink + tl.sum(powers, 1)
        sums = tl.dot(powers, values, acc=sums * shrink[:, None], input_precision=PRECISION)
        largest = new_largest
    place = (prompt * tl.num_programs(0) + tl.program_id(0)) * ROWS + row
    tl.store(most + place, largest)
    tl.store(total + place, powers_sum)
    tl.store(pooled + place[:, None] * CHANNELS + channel, sums)


@triton.jit
def draw(
    image: tl.tensor,  # PxNxC, float32
    masks: tl.tensor,  # PxKxD, D = C / 8
    first: tl.tensor,  # Cx4x(C/4): the first upscaling, for each of 2x2 pixels
    first_bias: tl.tensor,  # C/4
    norm_weight: tl.tensor,  # C/4
    norm_bias: tl.tensor,  # C/4
    eps: tl.tensor,
    second: tl.tensor,  # (C/4)x4xD: the second
    second_bias: tl.tensor,  # D
    out: tl.tensor,  # out: PxKx4Gx4G, N = G * G
    grid: tl.tensor,  # G
    count: tl.tensor,  # K
    CHANNELS: tl.constexpr,  # noqa: N803
    TILE: tl.constexpr,  # noqa: N803
    SOME: tl.constexpr,  # noqa: N803
    PRECISION: tl.constexpr,  # noqa: N803
) -> None:
    """Grid (tiles, P). A cell becomes 2x2 pixels, each of these 2x2 more, and a mask is their product with its row."""
    MIDDLE: tl.constexpr = CHANNELS // 4  # noqa: N806
    LAST: tl.constexpr = CHANNELS // 8  # noqa: N806
    cell = tl.program_id(0) * TILE + tl.arange(0, TILE)
    prompt = tl.program_id(1).to(tl.int64)
    cells, side = grid * grid, 4 * grid
    there = cell < cells
    middle, last = tl.arange(0, MIDDLE), tl.arange(0, LAST)
    wide = tl.arange(0, 4 * LAST)
    image += (prompt * cells + cell[:, None]) * CHANNELS
    to_last = tl.load(second + middle[:, None] * (4 * LAST) + wide[None, :])
    bias = tl.load(second_bias + wide % LAST)[None, :]
    pixel = tl.arange(0, 4)[None, :]
    for quarter in range(4):
        h = tl.zeros((TILE, MIDDLE), tl.float32) + tl.load(first_bias + middle)[None, :]
        of_quarter = first + quarter * MIDDLE + middle[None, :]
        for start in range(0, CHANNELS, SOME):
            some = start + tl.arange(0, SOME)
            x = tl.load(image + some[None, :], there[:, None], 0.0)
            h = tl.dot(x, tl.load(of_quarter + some[:, None] * CHANNELS), acc=h, input_precision=PRECISION)
        h -= (tl.sum(h, 1) / MIDDLE)[:, None]
        h *= tl.rsqrt(tl.sum(h * h, 1) / MIDDLE + eps)[:, None]
        h = h * tl.load(norm_weight + middle)[None, :] + tl.load(norm_bias + middle)[None, :]
        h = 0.5 * h * (1.0 + tl.erf(h * 0.7071067811865476))
        h = tl.dot(h, to_last, input_precision=PRECISION) + bias
        h = 0.5 * h * (1.0 + tl.erf(h * 0.7071067811865476))
        h = tl.reshape(h, (TILE, 4, LAST))
        row = 4 * (cell // grid)[:, None] + 2 * (quarter // 2) + pixel // 2
        column = 4 * (cell % grid)[:, None] + 2 * (quarter % 2) + pixel % 2
        for mask in range(count):
            of_mask = prompt * count + mask
            logits = tl.sum(h * tl.load(masks + of_mask * LAST + last)[None, None, :], 2)
            tl.store(out + (of_mask * side + row) * side + column, logits, there[:, None])
