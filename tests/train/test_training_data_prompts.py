"""Prompts drawn on the device: clicks inside what they mean, targets equal to those drawn image by image."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

from data_engine.train.data.device_prompts import draw_prompts, shrunk
from data_engine.train.data.photograph_views import PhotographViews
from data_engine.train.data.torch_scenes import SceneGenerator
from data_engine.train.photographs import Photograph
from data_engine.train.prompts import _distinct, shrink
from data_engine.train.regions import region_tree

FRAME, SIDE = 96, 24


@pytest.fixture(scope="module")
def levels():
    return SceneGenerator(most_things=8).draw(3, 72, 96, 5).levels


@pytest.fixture(scope="module")
def prompts(levels):
    return draw_prompts(levels, clicks=12, boxes=5, frame=FRAME, mask_side=SIDE, grid_share=0.5, seed=1)


def test_shapes_and_places(levels, prompts):
    count, _, height, width = levels.shape
    assert prompts.clicks.shape == (count, 12, 2)
    assert prompts.boxes.shape == (count, 5, 4)
    assert prompts.targets.shape == (count, 17, 3, SIDE, SIDE)
    assert prompts.valid.shape == (count, 17, 3)
    assert prompts.valid[:, :12].any(2).all()
    assert prompts.valid[:, 12:, 0].all()
    assert not prompts.valid[:, 12:, 1:].any()
    limits = torch.tensor([width, height])
    assert ((prompts.clicks > -1) & (prompts.clicks < limits)).all()
    assert (prompts.boxes[..., 2:] >= prompts.boxes[..., :2]).all()


def test_targets_are_the_regions_under_the_click(levels, prompts):
    smallest = 10 * (FRAME // SIDE) ** 2
    for scene, clicks, targets, valid in zip(
        levels.numpy(), prompts.clicks.numpy(), prompts.targets.numpy(), prompts.valid.numpy(), strict=True
    ):
        for (x, y), mine, kept in zip(np.rint(clicks).astype(int), targets, valid, strict=False):
            y, x = min(max(y, 0), scene.shape[1] - 1), min(max(x, 0), scene.shape[2] - 1)
            numbers = scene[:, y, x]
            masks = scene == numbers[:, None, None]
            assert np.array_equal(mine, shrink(masks, FRAME, SIDE))
            assert np.array_equal(kept, _distinct(masks.sum((1, 2)), numbers, smallest))


def test_boxes_are_around_their_region(prompts):
    cell = FRAME / SIDE
    for boxes, targets in zip(prompts.boxes, prompts.targets[:, 12:, 0], strict=True):
        for box, target in zip(boxes, targets, strict=True):
            rows, columns = target.any(1).nonzero(), target.any(0).nonzero()
            if not len(rows):
                continue
            around = torch.stack([columns[0, 0], rows[0, 0], columns[-1, 0] + 1, rows[-1, 0] + 1]) * cell
            size = (around[2:] - around[:2]).repeat(2)
            assert ((box - around).abs() <= 0.12 * size + 2 * cell).all()


def test_the_seed_decides(levels, prompts):
    how = {"clicks": 12, "boxes": 5, "frame": FRAME, "mask_side": SIDE, "grid_share": 0.5}
    again, other = (draw_prompts(levels, seed=seed, **how) for seed in (1, 2))
    assert torch.equal(again.clicks, prompts.clicks)
    assert torch.equal(again.targets, prompts.targets)
    assert not torch.equal(other.clicks, prompts.clicks)


def test_a_scene_of_nothing_has_no_valid_click():
    empty = torch.zeros(1, 3, 48, 48, dtype=torch.int32)
    found = draw_prompts(empty, clicks=4, boxes=2, frame=48, mask_side=12, grid_share=0.5, seed=0)
    assert not found.valid.any()


def test_shrunk_is_shrink():
    masks = np.random.default_rng(0).random((2, 3, 30, 50)) < 0.5
    assert np.array_equal(shrunk(torch.from_numpy(masks), 64, 16).numpy(), shrink(masks, 64, 16))


def test_views_of_photographs_keep_their_regions_on_their_pixels():
    rng = np.random.default_rng(0)
    pixels = np.zeros((60, 80, 3), np.uint8)
    pixels[:, :40] = (200, 30, 30)
    pixels[30:, 40:] = (30, 30, 200)
    pixels = np.clip(pixels + rng.integers(0, 5, pixels.shape), 0, 255).astype(np.uint8)
    objects = np.zeros((60, 80), np.int32)
    objects[30:, 40:] = 1
    views = PhotographViews([Photograph("x", pixels, region_tree(pixels), objects)], "cpu", hierarchies=2)
    batch = views.draw(6, 48, 64, seed=3)
    assert batch.images.shape == (6, 3, 48, 64)
    for image, levels in zip(batch.images.float(), batch.levels, strict=True):
        for outer, inner in pairwise(levels):
            pairs = torch.stack([inner.flatten(), outer.flatten()]).unique(dim=1)
            assert len(pairs[0].unique()) == pairs.shape[1]
        for number in levels[0].unique():
            region = image[:, levels[0] == number]
            if region.shape[1] > 100:  # one colour, but for its edge
                assert (region - region.median(1, keepdim=True).values).abs().median() < 25
