"""Models to measure with: those that have weights, and the released sizes with random ones."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from data_engine.bench.random_sam import calibrated
from data_engine.sam.checkpoints import load_checkpoint
from data_engine.sam.model import Sam, SamArchitecture, Uninitialised

RANDOM_MODELS = {"vit_b": "b", "vit_l": "l", "vit_h": "h"}


@dataclass(frozen=True, slots=True)
class BenchModel:
    name: str
    sam: Sam  # float32
    weights: str  # where they come from


def load_model(name: str, device: torch.device, seed: int = 0) -> BenchModel:
    """ "vit_b", "vit_l" and "vit_h" with random weights, or what `load_segmenter` knows: a name, a file or a URL.

    Raises CheckpointError and UsageError.
    """
    if name in RANDOM_MODELS:
        sam = calibrated(SamArchitecture.vit(RANDOM_MODELS[name]), seed, device)
        return BenchModel(name, sam, f"random, calibrated, seed {seed}")
    checkpoint = load_checkpoint(name)
    with torch.device(device), Uninitialised():
        sam = Sam(checkpoint.architecture)
    sam.load_state_dict(checkpoint.state)
    return BenchModel(checkpoint.name, sam.eval().requires_grad_(False), f"sha256 {checkpoint.sha256[:12]}")
