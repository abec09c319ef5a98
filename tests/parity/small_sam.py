"""Small SAMs with random weights, as segment-anything builds them and as we do."""

from __future__ import annotations

from dataclasses import replace

import torch
from parity.reference import modeling, reference_sam
from torch import Tensor

from data_engine.sam.model import Sam, SamArchitecture
from data_engine.sam.segmenter import SamSegmenter

SMALL = SamArchitecture(
    embed_dim=48,
    depth=2,
    num_heads=3,
    mlp_dim=96,
    global_blocks=(1,),
    image_size=128,
    patch_size=16,
    window_size=3,  # 8 cells a side: the last windows are padded
    dim=32,
    mask_hidden_dim=8,
    decoder_mlp_dim=64,
    iou_hidden_dim=24,
)


def random_sam(architecture: SamArchitecture, seed: int = 0) -> modeling.Sam:
    """segment-anything's Sam. Everything it starts at zero or one (position tables, norms) is random here too."""
    torch.manual_seed(seed)
    sam = reference_sam(architecture)
    with torch.no_grad():
        for name, parameter in sam.named_parameters():
            if "rel_pos" in name or "pos_embed" in name:
                parameter.normal_(std=0.5)
            elif parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    return sam.eval().requires_grad_(False)


def our_sam(architecture: SamArchitecture, state: dict[str, Tensor]) -> Sam:
    sam = Sam(architecture)
    sam.load_state_dict(state)
    return sam.eval().requires_grad_(False)


def both(architecture: SamArchitecture = SMALL, seed: int = 0, **changes: object) -> tuple[Sam, modeling.Sam]:
    """(ours, theirs) with the same weights."""
    architecture = replace(architecture, **changes)
    theirs = random_sam(architecture, seed)
    return our_sam(architecture, theirs.state_dict()), theirs


def small_segmenter(architecture: SamArchitecture = SMALL, seed: int = 0) -> SamSegmenter:
    return SamSegmenter(both(architecture, seed)[0], torch.device("cpu"), "reference")
