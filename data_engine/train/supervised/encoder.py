"""What training adds to the image encoder, without changing its classes: stochastic depth and checkpointing."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from data_engine.sam.image_encoder import Block, ImageEncoder


def add_drop_path(encoder: ImageEncoder, rate: float) -> None:
    """Stochastic depth (arXiv 1603.09382): in training, a block's branches are left out for some images.

    The share grows linearly with depth, up to `rate` at the last block, as in ViTDet.
    """
    last = max(1, len(encoder.blocks) - 1)
    for index, block in enumerate(encoder.blocks):
        assert isinstance(block, Block)
        share = rate * index / last
        if share:
            for branch in (block.attn, block.mlp):
                branch.register_forward_hook(partial(_drop, share))


def _drop(share: float, module: nn.Module, _: Any, output: Tensor) -> Tensor:
    if not module.training:
        return output
    # Windows of an image are joined again before a branch ends, so dimension 0 counts images.
    kept = torch.rand(len(output), 1, 1, 1) >= share
    return output * (kept.to(output.device, output.dtype) / (1 - share))


def checkpoint_blocks(encoder: ImageEncoder) -> None:
    """Blocks keep only their input for the backward pass, and are computed a second time in it."""
    for block in encoder.blocks:
        plain = block.forward
        block.forward = partial(_checkpointed, plain)


def _checkpointed(forward: Any, x: Tensor) -> Tensor:
    if not torch.is_grad_enabled():
        return forward(x)
    return checkpoint(forward, x, use_reentrant=False)


def trains(encoder: ImageEncoder) -> bool:
    """Whether any of its weights is trained."""
    return any(parameter.requires_grad for parameter in encoder.parameters())
