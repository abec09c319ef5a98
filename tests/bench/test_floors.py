"""The least work, against torch's count of what networks do."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from bench.small import needs_segment_anything
from torch.utils.flop_counter import FlopCounterMode

from data_engine.bench.floors import (
    Amounts,
    Floor,
    Work,
    drawing_work,
    encoder_work,
    floors,
    number_formats,
    prompt_work,
    shares,
)
from data_engine.bench.machine import Attainable, attainable
from data_engine.bench.random_sam import calibrated
from data_engine.bench.reference import reference_sam
from data_engine.sam.model import Sam, SamArchitecture
from data_engine.sam.segmenter import Embeddings, SamSegmenter

SMALL = SamArchitecture(
    embed_dim=32, depth=3, num_heads=2, mlp_dim=96, global_blocks=(1,), image_size=128, patch_size=8, window_size=4
)
MACHINE = Attainable({"float32": 1e12, "tf32": 4e12, "bfloat16": 8e12}, 1e11)
AMOUNTS = Amounts(views=1, prompts=1024, drawn=1500, region=1e5)


def product(_: Any, left: torch.Size, right: torch.Size, *, out_shape: Any = None, **__: Any) -> int:
    return 2 * left.numel() * right[-1]


IN_PLACE = {torch.ops.aten.addmm_: product, torch.ops.aten.baddbmm_: product}  # torch's counter leaves these out


def counted(work: Any, *arguments: Any) -> float:
    with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=IN_PLACE) as counter:
        work(*arguments)
    return counter.get_total_flops()


def test_an_encoder_without_padding_needs_what_the_reference_does() -> None:
    needs_segment_anything()
    encoder = reference_sam(SMALL, Sam(SMALL).state_dict()).image_encoder
    assert encoder_work(SMALL).operations == counted(encoder, torch.zeros(1, 3, 128, 128))


def test_padded_windows_are_not_needed() -> None:
    needs_segment_anything()
    padded = replace(SMALL, window_size=5)  # 16 cells a side: four windows of which the last is padded
    encoder = reference_sam(padded, Sam(padded).state_dict()).image_encoder
    reference = counted(encoder, torch.zeros(1, 3, 128, 128))
    assert 0.7 * reference < encoder_work(padded).operations < reference


def test_the_released_sizes() -> None:
    """What torch counts on segment-anything's modules: 0.97, 2.99 and 5.96e12, with their padding."""
    needed = [encoder_work(SamArchitecture.vit(size)).operations for size in "blh"]
    assert needed == pytest.approx([0.97e12, 2.99e12, 5.96e12], rel=0.08)
    assert all(least < padded for least, padded in zip(needed, (0.98e12, 2.99e12, 5.97e12), strict=True))


@pytest.fixture(scope="module")
def decoder() -> tuple[SamArchitecture, SamSegmenter, Embeddings]:
    """The released decoder behind a small encoder."""
    a = SamArchitecture(embed_dim=16, depth=1, num_heads=1, mlp_dim=16, global_blocks=())
    segmenter = SamSegmenter(calibrated(a), torch.device("cpu"), "reference")
    return a, segmenter, Embeddings(torch.randn(1, 256, 64, 64))


def decode(segmenter: SamSegmenter, embeddings: Embeddings, wanted: int) -> None:
    points = torch.rand(4, 1, 2) * 1024
    decoded = segmenter.decode(embeddings, 0, points=points, labels=torch.ones(4, 1, dtype=torch.int))
    mask = torch.zeros(4, 3, dtype=torch.bool)
    mask[:wanted] = True
    decoded.logits(mask)


def test_no_click_is_decoded_with_less(decoder: tuple[SamArchitecture, SamSegmenter, Embeddings]) -> None:
    a, segmenter, embeddings = decoder
    a_click = counted(decode, segmenter, embeddings, 0) / 4
    assert prompt_work(a).operations < a_click < 3.62e9  # the reference's, masks included
    assert prompt_work(a).operations > 0.4e9


def test_masks_are_drawn_with_what_is_needed(decoder: tuple[SamArchitecture, SamSegmenter, Embeddings]) -> None:
    a, segmenter, embeddings = decoder
    none, all_ = (counted(decode, segmenter, embeddings, wanted) for wanted in (0, 4))
    assert drawing_work(a, 12).operations == pytest.approx(all_ - none, rel=0.1)


def test_the_floor_is_the_slower_of_operations_and_bytes() -> None:
    a = SamArchitecture.vit("b")
    found = floors(a, AMOUNTS, ("float32", "float32"), MACHINE)
    encode = found["encode"]
    assert encode.seconds == pytest.approx(encode.work.operations / 1e12)
    slow_memory = floors(a, AMOUNTS, ("float32", "float32"), Attainable(MACHINE.operations, 1e6))["encode"]
    assert slow_memory.seconds == pytest.approx(encode.work.bytes / 1e6)


def test_crops_and_number_formats_count() -> None:
    a = SamArchitecture.vit("b")
    one, many = (floors(a, replace(AMOUNTS, views=views), ("float32", "float32"), MACHINE) for views in (1, 21))
    assert many["encode"].work.operations == 21 * one["encode"].work.operations
    fast = floors(a, AMOUNTS, number_formats("fast", "cuda"), MACHINE)
    assert fast["encode"].seconds == pytest.approx(one["encode"].seconds / 8)
    assert number_formats("fast", "cpu") == ("bfloat16", "float32")
    assert number_formats("reference", "cuda") == ("float32", "float32")


def test_shares() -> None:
    found = {"encode": Floor(Work(), "float32", 1.0), "masks": Floor(Work(), "float32", 2.0)}
    assert shares(found, {"encode": 4.0}, 10.0) == {"encode": 0.25, "total": 0.3}


def test_what_this_machine_can_do() -> None:
    best = attainable(torch.device("cpu"), ("float32", "bfloat16"), size=128)
    assert best.operations.keys() == {"float32", "bfloat16"}
    assert all(value > 1e6 for value in [*best.operations.values(), best.bandwidth])
