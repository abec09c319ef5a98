"""Computing in bfloat16 with float32 weights: a working copy of the model, refreshed after every step."""

from __future__ import annotations

import copy

import torch

from data_engine.sam.model import Sam


class WorkingCopy:
    """A model that computes in `dtype` on behalf of a float32 one.

    The prompt encoder stays float32: bfloat16 coordinates would shift points by a pixel. Casting whole weights once a
    step is cheaper than autocast, which casts them at every use and keeps the residual stream in float32.
    """

    def __init__(self, master: Sam, dtype: torch.dtype) -> None:
        self.master = master
        self.model = copy.deepcopy(master)
        self.model.image_encoder.to(dtype)
        self.model.mask_decoder.to(dtype)
        self.dtype = dtype

    @torch.no_grad()
    def refresh(self) -> None:
        """Takes over the master's weights and forgets gradients."""
        for ours, theirs in zip(self.model.parameters(), self.master.parameters(), strict=True):
            ours.copy_(theirs)
            ours.grad = None

    @torch.no_grad()
    def hand_over_gradients(self) -> None:
        for ours, theirs in zip(self.model.parameters(), self.master.parameters(), strict=True):
            theirs.grad = None if ours.grad is None else ours.grad.to(theirs.dtype)
