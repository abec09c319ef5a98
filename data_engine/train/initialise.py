"""Where a short training starts: random weights that already carry what a mask is drawn from.

A SAM learns in days what hours have no time for. Three things are therefore put there by hand, and trained further:

* **Colours reach the mask.** A cell of the embedding becomes 4x4 pixels of the mask. The patch embedding starts with
  the mean colours of a patch's 4x4 blocks, neck and upscaling hand them on, each to its own pixel. Otherwise masks
  have the resolution of the cells for most of the training.
* **A click looks where it is.** In the cross attentions queries and keys are projected alike and amplified, so that
  the products of positional encodings, largest for equal positions, show through. What is found is handed on unmixed.
* **Blocks start quiet**, as in GPT-2: the sum of many random branches would drown the colours.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from data_engine.sam.image_encoder import Block
from data_engine.sam.mask_decoder import CrossAttention
from data_engine.sam.model import Sam, SamArchitecture

_LOCALITY = 3.0
_QUIET = 0.3
_BLOCKS = 4  # a side of a cell: the upscaling's factor
_COLOURS = _BLOCKS * _BLOCKS * 3
_CONSTANTS = 8  # channels that are the same everywhere, so that layer norms keep a plain patch's colours small
_LEVEL = 3.0  # their value


def new_model(architecture: SamArchitecture) -> Sam:
    """A Sam with the start described above; colours only where the widths have room for them."""
    model = Sam(architecture)
    with torch.no_grad():
        nn.init.trunc_normal_(model.image_encoder.pos_embed, std=0.02)
        _look_where_the_click_is(model)
        if architecture.embed_dim >= _COLOURS + _CONSTANTS and architecture.dim >= 2 * _COLOURS + _CONSTANTS:
            _carry_colours(model)
    return model


def _look_where_the_click_is(model: Sam) -> None:
    for module in model.mask_decoder.transformer.modules():
        if isinstance(module, CrossAttention):
            module.q_proj.weight.mul_(_LOCALITY)
            module.k_proj.weight.copy_(module.q_proj.weight)
            nn.init.orthogonal_(module.v_proj.weight)
            module.out_proj.weight.copy_(module.v_proj.weight.T)


def _carry_colours(model: Sam) -> None:
    encoder, decoder = model.image_encoder, model.mask_decoder
    for block in encoder.blocks:
        assert isinstance(block, Block)
        block.attn.proj.weight.mul_(_QUIET)
        block.mlp.lin2.weight.mul_(_QUIET)

    patch = encoder.patch_embed.proj
    assert isinstance(patch, nn.Conv2d)
    assert patch.bias is not None
    patch.weight[:_COLOURS] = _block_means(patch.kernel_size[0])
    patch.bias[: _COLOURS + _CONSTANTS] = 0
    patch.weight[_COLOURS : _COLOURS + _CONSTANTS] = 0
    signs = torch.tensor([1.0, -1.0]).repeat(_CONSTANTS // 2)
    encoder.pos_embed[..., _COLOURS : _COLOURS + _CONSTANTS] = _LEVEL * signs

    project, _, mix, _ = encoder.neck
    assert isinstance(project, nn.Conv2d)
    assert isinstance(mix, nn.Conv2d)
    handed_on = 2 * _COLOURS + _CONSTANTS
    project.weight[:handed_on] = 0
    for colour in range(_COLOURS):
        project.weight[colour, colour] = 1
        project.weight[_COLOURS + colour, colour] = -1  # with its negative, colours have zero mean in a layer norm
    for constant in range(_CONSTANTS):
        project.weight[2 * _COLOURS + constant, _COLOURS + constant] = 1
    mix.weight.mul_(_QUIET)
    mix.weight[:, :, 1, 1] += torch.eye(len(mix.weight))

    model.prompt_encoder.no_mask_embed.weight.mul_(0.02)
    first, _, _, second, _ = decoder.output_upscaling
    assert isinstance(first, nn.ConvTranspose2d)
    assert isinstance(second, nn.ConvTranspose2d)
    assert second.bias is not None
    half = _BLOCKS // 2 * (_BLOCKS // 2) * 3  # colours of a quarter of a cell
    for y in range(2):
        for x in range(2):
            kernel = first.weight[:, :, y, x]  # in x out
            kernel[:, : 2 * half] = 0
            for index, source in enumerate(_quarter(y, x)):
                kernel[source, index] = kernel[_COLOURS + source, half + index] = 0.5
                kernel[_COLOURS + source, index] = kernel[source, half + index] = -0.5
    # gelu(x) - gelu(-x) = x: the second upscaling sees the colour again, and looks along random directions of it.
    directions = torch.randn(3, second.out_channels)
    directions = 1.5 * directions / directions.norm(dim=0)
    for y in range(2):
        for x in range(2):
            at = (2 * y + x) * 3
            second.weight[at : at + 3, :, y, x] = directions
            second.weight[half + at : half + at + 3, :, y, x] = -directions
    nn.init.uniform_(second.bias, -1, 1)


def _block_means(patch: int) -> Tensor:
    """Kernels that average a patch's blocks: 48x3xPxP, block by block, each red, green, blue."""
    side = patch // _BLOCKS
    kernels = torch.zeros(_BLOCKS, _BLOCKS, 3, 3, patch, patch)
    for y in range(_BLOCKS):
        for x in range(_BLOCKS):
            for channel in range(3):
                kernels[y, x, channel, channel, y * side : (y + 1) * side, x * side : (x + 1) * side] = side**-2
    return kernels.flatten(0, 2)


def _quarter(y: int, x: int) -> list[int]:
    """The colour channels of a quarter of a cell, in the order that the second upscaling expects."""
    blocks = [(2 * y + inner_y) * _BLOCKS + 2 * x + inner_x for inner_y in range(2) for inner_x in range(2)]
    return [3 * block + channel for block in blocks for channel in range(3)]
