"""`ImageAttention` for a CPU, tile by tile.

A prompt's own image embedding has 4 MiB, those of a few prompts leave the cache. An operation at a time, each would go
through memory about sixteen times a prompt, most often to be added to or normalised. So everything that happens to a
cell happens while it is in the cache: results are those of the whole, to the last bits of sums. Two idle cores have
memory enough for both; where it is busy, this takes a quarter to a third less time.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_TILE_VALUES = 2**17  # of an image embedding: half a megabyte, with what is made of it a core's own cache


class Tiled:
    def __init__(self, image: Tensor, positions: Tensor) -> None:
        self.image = image.contiguous()  # an embedding comes channel by channel
        self.positions = positions

    def gather(self, rows: Tensor) -> Tensor:
        image, positions = self.image, self.positions
        if image.dim() == 2:  # one product for all prompts
            return (rows @ (image + positions).mT).softmax(-1) @ image
        scores = rows.new_empty(*rows.shape[:2], len(positions))
        for prompts, cells in _tiles(image):
            keys = image[prompts, cells] + positions[cells]
            scores[prompts, :, cells] = rows[prompts] @ keys.mT
        return scores.softmax(-1) @ image

    def scatter(
        self, rows: Tensor, offset: Tensor, added: Tensor, heads: int, norm: nn.LayerNorm, *, overwrite: bool
    ) -> Tensor:
        image = self.image.expand(len(rows), -1, -1)
        answered = image if overwrite else image.new_empty(image.shape)
        shape, weight, bias, eps = tuple(norm.normalized_shape), norm.weight, norm.bias, norm.eps
        for prompts, cells in _tiles(image):
            before, after = image[prompts, cells], answered[prompts, cells]
            scores = torch.baddbmm(offset[prompts], rows[prompts], (before + self.positions[cells]).mT)
            shares = scores.unflatten(1, (heads, -1)).softmax(2).flatten(1, 2)
            torch.baddbmm(before, shares.mT, added[prompts], out=after)
            after.copy_(F.layer_norm(after, shape, weight, bias, eps))
        return answered


def _tiles(image: Tensor) -> Iterator[tuple[slice, slice]]:
    """Prompts and cells of an image PxNxC: some cells of one prompt, or all of several."""
    prompts, count, channels = image.shape
    together = max(1, _TILE_VALUES // (count * channels))
    step = max(1, _TILE_VALUES // (together * channels))
    for prompt in range(0, prompts, together):
        for cell in range(0, count, step):
            yield slice(prompt, prompt + together), slice(cell, cell + step)
