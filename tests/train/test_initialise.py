"""The start of a short training: colours reach the pixels that masks are drawn from, before anything is learnt."""

from __future__ import annotations

from dataclasses import replace

import torch
from train.tiny_training import ARCHITECTURE

from data_engine.train.initialise import new_model

WIDE = replace(ARCHITECTURE, embed_dim=64, num_heads=2, dim=128, image_size=128, patch_size=16)


def pixels_of(image: torch.Tensor) -> torch.Tensor:
    """What a mask weighs, CxHxW, for an image 3xSxS."""
    torch.manual_seed(0)
    model = new_model(WIDE).eval()
    embedding = model.image_encoder(image[None])
    return model.mask_decoder.output_upscaling(embedding)[0]


@torch.no_grad()
def test_a_pixel_of_the_mask_sees_its_own_colour() -> None:
    image = torch.zeros(3, 128, 128)
    plain = pixels_of(image)
    image[:, 40:44, 80:84] = 2.0  # one pixel of the mask: 4x4 of the input
    change = (pixels_of(image) - plain).norm(dim=0)
    row, column = divmod(int(change.argmax()), change.shape[1])
    assert (row, column) == (10, 20)


@torch.no_grad()
def test_where_there_is_no_room_for_colours_the_model_is_still_whole() -> None:
    model = new_model(ARCHITECTURE)
    assert all(tensor.isfinite().all() for tensor in model.state_dict().values())
