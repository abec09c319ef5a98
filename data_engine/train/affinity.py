"""A second task on the same embedding, for speed of learning: which pixels belong with this one?

A prompt through the decoder costs as much as hundreds of dot products of upscaled pixels, and teaches the encoder as
much as one of them. So many random pixels of each image are answered directly: the embedding's cell that a pixel is in
is turned into three mask weights by a small network that is thrown away after the training.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from data_engine.sam.mask_decoder import MaskDecoder
from data_engine.sam.model import SamArchitecture
from data_engine.train.decoding import Phase, at_phase, logits_at_phase
from data_engine.train.losses import assign_targets, pairwise_losses
from data_engine.train.prompts import SAME, TARGETS


class AffinityHead(nn.Module):
    """Cells of an embedding NxC -> mask weights Nx3x(C/8)."""

    def __init__(self, architecture: SamArchitecture) -> None:
        super().__init__()
        dim = architecture.dim
        self.layers = nn.Sequential(nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, TARGETS * (dim // 8)))

    def forward(self, cells: Tensor) -> Tensor:
        return self.layers(cells).unflatten(-1, (TARGETS, -1))


def affinity_loss(
    head: AffinityHead,
    decoder: MaskDecoder,
    embedding: Tensor,
    levels: Tensor,
    phase: Phase,
    *,
    pixels: int,
    focal_weight: float,
    dice_weight: float,
    generator: torch.Generator,
) -> Tensor:
    """embedding NxC of one image, levels 3x(4G)x(4G) region numbers (0: unknown) -> mean loss of `pixels` pixels."""
    side = levels.shape[-1]
    known = (levels > 0).any(0).flatten().float()
    at = torch.multinomial(known.cpu(), pixels, replacement=True, generator=generator).to(levels.device)
    numbers = levels.flatten(1)[:, at].T  # Px3
    seen = at_phase(levels, phase)
    targets = seen == numbers[..., None, None]
    areas = targets.sum((2, 3))
    valid = (numbers > 0) & (areas > 0)
    for finer in range(1, TARGETS):
        for coarser in range(finer):
            valid[:, finer] &= ~(valid[:, coarser] & (areas[:, finer] >= SAME * areas[:, coarser]))
    cells = (at // side // 4) * decoder.grid + at % side // 4
    weights = head(embedding[cells].float()).to(embedding.dtype)
    logits = logits_at_phase(decoder, embedding[None], weights.flatten(0, 1)[None], phase)
    pairs = pairwise_losses(logits[0].unflatten(0, (pixels, TARGETS)), targets)
    loss = focal_weight * pairs.focal + dice_weight * pairs.dice
    chosen = assign_targets(loss, valid)
    return (loss * chosen).sum() / chosen.sum().clamp(min=1)
