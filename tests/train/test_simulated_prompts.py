"""The simulated person: points lie where they should, uniformly; boxes are tight without noise."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from data_engine.masks import rle
from data_engine.train.supervised.settings import PromptSettings
from data_engine.train.supervised.simulated_prompts import (
    correcting_points,
    first_prompts,
    noised_boxes,
    random_points,
)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def masks_of(seed: int, count: int, side: int) -> torch.Tensor:
    masks = torch.rand(count, side, side, generator=generator(seed)) > 0.9
    masks[:, side // 2, 0] = True  # none is empty
    return masks


@given(st.integers(0, 1000), st.sampled_from([8, 16, 32]))
def test_a_point_lies_inside_its_mask(seed, side):
    masks = masks_of(seed, 6, side)
    points, inside = random_points(masks, 32, generator(seed))
    cells = ((points + 0.5) * side / 32).floor().long()
    assert masks[torch.arange(6), cells[:, 1], cells[:, 0]].all()
    assert inside.all()


def test_every_pixel_of_a_mask_is_as_likely():
    mask = torch.zeros(1, 8, 8, dtype=torch.bool)
    mask[0, 1, 2] = mask[0, 5, 5] = mask[0, 7, 7] = True
    points, _ = random_points(mask.expand(6000, -1, -1), 8, generator())
    counts = np.unique(points.long().numpy(), axis=0, return_counts=True)
    assert counts[0].tolist() == [[2, 1], [5, 5], [7, 7]]
    assert (abs(counts[1] - 2000) < 200).all()


@given(st.integers(0, 1000))
def test_a_correction_is_where_the_answer_is_wrong_and_says_how(seed):
    targets, answers = masks_of(seed, 6, 16), masks_of(seed + 1, 6, 16)
    answers[0] = targets[0]  # a perfect answer
    points, labels = correcting_points(answers, targets, 16, generator(seed))
    x, y = points.round().long().T
    rows = torch.arange(6)
    assert (targets[rows, y, x] == (labels == 1)).all()
    assert (answers[rows, y, x] != targets[rows, y, x])[1:].all()
    assert labels[0] == 1


@given(st.integers(0, 1000))
def test_boxes_without_noise_go_from_the_first_to_the_last_pixel(seed):
    masks = masks_of(seed, 4, 16)
    boxes = noised_boxes(masks, 16, PromptSettings(box_noise=0), generator())
    assert boxes.tolist() == [list(map(float, rle.box(rle.encode(mask.numpy())))) for mask in masks]


def test_noise_is_bounded_and_stays_in_the_frame():
    masks = masks_of(1, 200, 64)
    tight = noised_boxes(masks, 64, PromptSettings(box_noise=0), generator())
    noised = noised_boxes(masks, 64, PromptSettings(box_noise=0.5, box_noise_max=3), generator())
    assert (noised - tight).abs().max() <= 3
    assert (noised != tight).any(1).float().mean() > 0.9
    assert noised.min() >= 0
    assert noised.max() <= 63


def test_the_share_of_boxes_is_kept():
    masks = masks_of(2, 400, 8)
    for share in (0.0, 0.3, 1.0):
        prompts = first_prompts(masks, 8, PromptSettings(box_share=share), generator())
        assert abs(len(prompts.boxes) / 400 - share) < 0.08
        assert prompts.points.shape == (400, 1, 2)
