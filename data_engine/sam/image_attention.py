"""The decoder's attention between the tokens of P prompts and an image's cells: three ways, one result.

Every projection is on the tokens' side (see `mask_decoder`), as rows: one for each head and token, R = H * T of them,
in the image's own space. What is left is `gather`, where the tokens attend to the image, and `scatter`, where the image
attends to the tokens. `image_attention` chooses the way that suits the device; `Whole` is the plain one.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn

from data_engine.sam import fused_decoder
from data_engine.sam.tiled_attention import Tiled


class ImageAttention(Protocol):
    """Of one image NxC, shared by all prompts, or PxNxC."""

    def gather(self, rows: Tensor) -> Tensor:
        """rows PxRxC -> softmax over the cells of rows . (image + positions), times the image: PxRxC."""
        ...

    def scatter(
        self, rows: Tensor, offset: Tensor, added: Tensor, heads: int, norm: nn.LayerNorm, *, overwrite: bool
    ) -> Tensor:
        """norm(image + shares . added) -> PxNxC.

        The shares are the softmax over a head's tokens of rows . (image + positions) + offset; rows and added PxRxC,
        offset PxRx1. overwrite: the image is not needed afterwards.
        """
        ...


def image_attention(image: Tensor, positions: Tensor, *, few: bool = False) -> ImageAttention:
    """image NxC or PxNxC, positions NxC. few: only `gather` is wanted, for a few rows."""
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        return Whole(image, positions, few)
    if image.device.type == "cpu":
        return Whole(image, positions, few) if few else Tiled(image, positions)
    if fused_decoder.suits(image):
        return fused_decoder.Fused(image, positions)
    return Whole(image, positions, few)


class Whole:
    """Operations of torch on everything at once: what gradients and compilers need, and what runs everywhere."""

    def __init__(self, image: Tensor, positions: Tensor, few: bool) -> None:
        self.image = image
        self.positions = positions
        self.keys = None if few else image + positions

    def gather(self, rows: Tensor) -> Tensor:
        if self.keys is None:  # for few rows the sum of two products is cheaper than that of image and positions
            scores = rows @ self.image.mT
            scores += rows @ self.positions.mT
        else:
            scores = rows @ self.keys.mT
        return scores.softmax(-1) @ self.image

    def scatter(
        self,
        rows: Tensor,
        offset: Tensor,
        added: Tensor,
        heads: int,
        norm: nn.LayerNorm,
        *,
        overwrite: bool,  # noqa: ARG002 - a new image is made all the same
    ) -> Tensor:
        assert self.keys is not None
        scores = rows @ self.keys.mT
        scores += offset
        shares = scores.unflatten(1, (heads, -1)).softmax(2).flatten(1, 2)
        return norm(torch.baddbmm(self.image.expand(len(rows), -1, -1), shares.mT, added))
