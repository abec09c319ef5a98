"""What a click and an image may cost, in operations and in memory: a saving that gets lost shows here, not in a timing.

Counted at the released models' sizes of the decoder (64 x 64 cells of 256 channels, 7 tokens, 8 heads) and at ViT-B's
of the encoder, 2 operations a multiply-add. The reference needs 3.62e9 for a click and 0.97e12 for an image.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from data_engine.sam.model import Sam, SamArchitecture, Uninitialised
from data_engine.sam.segmenter import Embeddings, SamSegmenter

CELLS, CHANNELS, TOKENS, HEADS, PROMPTS = 4096, 256, 7, 8, 4
IMAGE_BYTES = PROMPTS * CELLS * CHANNELS * 4


def product(_: Any, left: torch.Size, right: torch.Size, *, out_shape: Any = None, **__: Any) -> int:
    return 2 * left.numel() * right[-1]


IN_PLACE = {torch.ops.aten.addmm_: product, torch.ops.aten.baddbmm_: product}  # torch's counter leaves these out


class Allocations(TorchDispatchMode):
    """Bytes of every tensor that an operation makes anew."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = {a.untyped_storage().data_ptr() for a in args if isinstance(a, torch.Tensor)}
        made = [r for r in (result if isinstance(result, tuple) else (result,)) if isinstance(r, torch.Tensor)]
        self.sizes += [r.nbytes for r in made if r.untyped_storage().data_ptr() not in given]
        return result


def operations(work: Callable[..., Any], *arguments: Any) -> float:
    with FlopCounterMode(display=False, custom_mapping=IN_PLACE) as counter:
        work(*arguments)
    return counter.get_total_flops()


def allocations(work: Callable[..., Any], *arguments: Any) -> list[int]:
    with Allocations() as counter:
        work(*arguments)
    return counter.sizes


@pytest.fixture(scope="module")
def segmenter() -> SamSegmenter:
    """A small encoder, as it is not run here, with the released decoder."""
    torch.manual_seed(0)
    architecture = SamArchitecture(embed_dim=16, depth=1, num_heads=1, mlp_dim=16, global_blocks=())
    return SamSegmenter(Sam(architecture), torch.device("cpu"), "reference")


@pytest.fixture(scope="module")
def embeddings() -> Embeddings:
    return Embeddings(torch.randn(1, CHANNELS, 64, 64))


def decode(segmenter: SamSegmenter, embeddings: Embeddings, wanted: int) -> None:
    """Clicks on PROMPTS points, of which `wanted` want one mask each."""
    points = torch.rand(PROMPTS, 1, 2) * 1024
    decoded = segmenter.decode(embeddings, 0, points=points, labels=torch.ones(PROMPTS, 1, dtype=torch.int))
    mask = torch.zeros(PROMPTS, 3, dtype=torch.bool)
    mask[:wanted, 0] = True
    decoded.logits(mask)


def test_a_click_whose_masks_are_not_wanted(segmenter: SamSegmenter, embeddings: Embeddings) -> None:
    """Of 13 products with all rows (7 tokens x 8 heads) eight are left; the IoU token's last look has 8 rows."""
    all_rows = 2 * HEADS * TOKENS * CELLS * CHANNELS
    one_token = 2 * HEADS * CELLS * CHANNELS
    tokens_alone = 0.05e9  # their own projections, attention and MLPs
    a_click = operations(decode, segmenter, embeddings, 0) / PROMPTS
    assert 8 * all_rows < a_click < 8 * all_rows + 3 * one_token + tokens_alone


def test_only_wanted_masks_are_drawn(segmenter: SamSegmenter, embeddings: Embeddings) -> None:
    """0.82e9 operations for the upscaling, 0.15e9 for the mask tokens' last look at the image."""
    none, one, all_ = (operations(decode, segmenter, embeddings, wanted) for wanted in (0, 1, PROMPTS))
    assert one - none == pytest.approx(0.97e9, rel=0.03)
    assert all_ - none == pytest.approx(PROMPTS * (one - none))


def test_a_prompts_own_image_is_made_once(segmenter: SamSegmenter, embeddings: Embeddings) -> None:
    """By the first layer; the second writes over it. What leads there is made in tiles of half a megabyte."""
    large = [size for size in allocations(decode, segmenter, embeddings, 0) if size > 2**19]
    scores = IMAGE_BYTES * HEADS * TOKENS // CHANNELS
    assert large.count(IMAGE_BYTES) == 1
    assert all(size <= scores or size == CELLS * CHANNELS * 4 for size in large if size != IMAGE_BYTES)
    assert len(large) <= 8


def test_masks_are_drawn_in_pieces(segmenter: SamSegmenter, embeddings: Embeddings) -> None:
    """Of a mask's 65,536 pixels with 32 channels each, only a quarter is there at a time."""
    quarter = 65_536 * 32 * 4 // 4
    none, all_ = (allocations(decode, segmenter, embeddings, wanted) for wanted in (0, PROMPTS))
    assert max(all_[len(none) :]) <= quarter


def test_an_image() -> None:
    """Two blocks of ViT-B, with windows and without: linear layers on 4096 tokens, none of them padding, and global
    attention without padded heads. Attention in windows runs in a fused kernel that the counter does not see.
    """
    architecture = SamArchitecture(embed_dim=768, depth=2, num_heads=12, mlp_dim=3072, global_blocks=(1,))
    with Uninitialised():
        model = Sam(architecture).eval()
    dim, tokens = architecture.embed_dim, CELLS
    linear = 2 * tokens * (4 * dim * dim + 2 * dim * architecture.mlp_dim) * architecture.depth
    everywhere = 2 * tokens * tokens * 2 * dim * len(architecture.global_blocks)
    ends = 2 * tokens * (3 * 256 * dim + dim * CHANNELS + 9 * CHANNELS * CHANNELS)
    with torch.inference_mode():
        measured = operations(model.image_encoder, torch.zeros(1, 3, 1024, 1024))
    assert measured == pytest.approx(linear + everywhere + ends, rel=0.01)
