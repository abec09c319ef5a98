from __future__ import annotations

import pytest
import torch
from torch import Tensor

from data_engine.sam import mask_decoder, tiled_attention
from data_engine.sam.image_attention import Whole, image_attention
from data_engine.sam.mask_decoder import MaskDecoder
from data_engine.sam.model import Sam, SamArchitecture

PROMPTS, CELLS, CHANNELS = 5, 64, 32


@pytest.fixture(scope="module")
def decoder() -> MaskDecoder:
    torch.manual_seed(0)
    sizes = {"embed_dim": 16, "depth": 1, "num_heads": 1, "mlp_dim": 16, "global_blocks": ()}
    return Sam(SamArchitecture(image_size=128, dim=CHANNELS, decoder_heads=2, **sizes)).mask_decoder.eval()


def read(decoder: MaskDecoder, image: Tensor) -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    positions, tokens = torch.randn(CELLS, CHANNELS), torch.randn(PROMPTS, 3, CHANNELS)
    with torch.inference_mode():
        decoded = decoder.read(image, positions, tokens)
    return decoded.iou, decoded.image


@pytest.mark.parametrize("shape", [(CELLS, CHANNELS), (PROMPTS, CELLS, CHANNELS)], ids=["shared", "one a prompt"])
@pytest.mark.parametrize("values", [7 * CHANNELS, CELLS * CHANNELS, 2 * CELLS * CHANNELS, 2**20])
def test_tiles_of_any_size_give_what_whole_operations_give(
    decoder: MaskDecoder, monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...], values: int
) -> None:
    """Some cells of a prompt, one prompt, two (of five), all."""
    image = torch.randn(shape)
    monkeypatch.setattr(tiled_attention, "_TILE_VALUES", values)
    given = image.clone()
    in_tiles = read(decoder, image)
    assert torch.equal(image, given)  # only what the layers made themselves is written over
    monkeypatch.setattr(mask_decoder, "image_attention", lambda *given, few=False: Whole(*given, few))
    for found, expected in zip(in_tiles, read(decoder, image), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_a_prompt_has_the_same_answer_in_any_company(decoder: MaskDecoder) -> None:
    image, positions, tokens = torch.randn(CELLS, CHANNELS), torch.randn(CELLS, CHANNELS), torch.randn(9, 3, CHANNELS)
    with torch.inference_mode():
        together, alone = decoder.read(image, positions, tokens), decoder.read(image, positions, tokens[4:5])
    torch.testing.assert_close(together.image[4:5], alone.image, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(together.iou[4:5], alone.iou, rtol=1e-5, atol=1e-5)


def test_gradients_need_whole_operations(decoder: MaskDecoder) -> None:
    image = torch.randn(CELLS, CHANNELS, requires_grad=True)
    assert isinstance(image_attention(image, torch.randn(CELLS, CHANNELS)), Whole)
    decoder.read(image, torch.randn(CELLS, CHANNELS), torch.randn(2, 3, CHANNELS)).iou.sum().backward()
    assert image.grad is not None
    assert image.grad.abs().sum() > 0
