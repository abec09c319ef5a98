"""A trained model for a larger input: the start of a second, finer stage of training.

Most of a training is cheap at a small input; small regions need a large one. Weights carry over: windows, projections
and the decoder do not know the size. Three things do:

* absolute positions of cells, which are interpolated;
* relative positions of the global blocks: distances that did not exist before get the largest known one's embedding;
* Fourier features of coordinates, which are fractions of the input: `zoom` spreads them, so that a click is as sharp
  relative to a cell as before (zoom = the growth), or relative to the image (zoom = 1).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from data_engine.sam.model import Sam, SamArchitecture


def enlarged(architecture: SamArchitecture, state: Mapping[str, Tensor], image_size: int, zoom: float = 1.0) -> Sam:
    """state: in segment-anything's layout, of a model with `architecture`. Raises ValueError for a smaller size."""
    larger = replace(architecture, image_size=image_size)
    grid, new = architecture.grid, larger.grid
    if new < grid:
        raise ValueError(f"image_size {image_size} is smaller than the model's {architecture.image_size}")
    values = {name: tensor.float().clone() for name, tensor in state.items()}
    positions = values["image_encoder.pos_embed"].permute(0, 3, 1, 2)
    positions = F.interpolate(positions, size=(new, new), mode="bilinear", align_corners=False)
    values["image_encoder.pos_embed"] = positions.permute(0, 2, 3, 1).contiguous()
    for block in architecture.global_blocks:
        for axis in "hw":
            name = f"image_encoder.blocks.{block}.attn.rel_pos_{axis}"
            distances = torch.arange(1 - new, new).clamp(1 - grid, grid - 1) + grid - 1
            values[name] = values[name][distances]
    values["prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"] *= zoom
    model = Sam(larger)
    model.load_state_dict(values)
    return model
