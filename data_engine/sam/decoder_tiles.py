"""The decoder's attention between tokens and image on a CPU, tile by tile.

A prompt's own image embedding has 4 MiB, those of a few prompts leave the cache. An operation at a time, each would go
through memory about sixteen times a prompt, most often to be added to or normalised. So everything that happens to a
cell happens while it is in the cache: results are those of the whole, to the last bits of sums.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_TILE_VALUES = 2**17  # of an image embedding: half a megabyte, with what is made of it a core's own cache


def in_tiles(image: Tensor) -> bool:
    """Whether this is the better way: only on a CPU, and not where gradients or a compiler need whole operations."""
    return image.device.type == "cpu" and not torch.is_grad_enabled() and not torch.compiler.is_compiling()


def image_scores(rows: Tensor, image: Tensor, positions: Tensor) -> Tensor:
    """rows PxRxC . (image PxNxC + positions NxC) -> PxRxN."""
    scores = rows.new_empty(*rows.shape[:2], len(positions))
    for prompts, cells in _tiles(image):
        keys = image[prompts, cells] + positions[cells]
        scores[prompts, :, cells] = rows[prompts] @ keys.mT
    return scores


def answered_image(
    image: Tensor,
    positions: Tensor,
    rows: Tensor,
    offset: Tensor,
    added: Tensor,
    num_heads: int,
    norm: nn.LayerNorm,
    *,
    overwrite: bool,
) -> Tensor:
    """norm(image + shares . added) -> PxNxC, the shares being softmax(rows . (image + positions) + offset) a head.

    image PxNxC, positions NxC, rows and added PxRxC, offset PxRx1, R = heads x tokens.
    overwrite: into the image itself.
    """
    answered = image if overwrite else image.new_empty(image.shape)
    for prompts, cells in _tiles(image):
        before, after = image[prompts, cells], answered[prompts, cells]
        scores = torch.baddbmm(offset[prompts], rows[prompts], (before + positions[cells]).mT)
        shares = scores.unflatten(1, (num_heads, -1)).softmax(2).flatten(1, 2)
        torch.baddbmm(before, shares.mT, added[prompts], out=after)
        after.copy_(F.layer_norm(after, *_arguments(norm)))
    return answered


def _arguments(norm: nn.LayerNorm) -> tuple[tuple[int, ...], Tensor, Tensor, float]:
    return tuple(norm.normalized_shape), norm.weight, norm.bias, norm.eps


def _tiles(image: Tensor) -> Iterator[tuple[slice, slice]]:
    """Prompts and cells of an image PxNxC: some cells of one prompt, or all of several."""
    prompts, count, channels = image.shape
    together = max(1, _TILE_VALUES // (count * channels))
    step = max(1, _TILE_VALUES // (together * channels))
    for prompt in range(0, prompts, together):
        for cell in range(0, count, step):
            yield slice(prompt, prompt + together), slice(cell, cell + step)
