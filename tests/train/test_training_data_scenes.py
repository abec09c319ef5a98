"""Procedural scenes: exact nested masks, the same on every call, and three answers under a click on a detail."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from data_engine.masks import rle
from data_engine.train.data.labelled import DataFilters
from data_engine.train.data.scene_shapes import Frame, Outlines
from data_engine.train.data.scenes import Scenes, region_masks
from data_engine.train.data.torch_scenes import SceneGenerator


@examples(max_examples=5)
@given(seed=st.integers(0, 2**40), height=st.integers(40, 80), width=st.integers(40, 80))
def test_regions_are_nested(seed, height, width):
    batch = SceneGenerator(most_things=8).draw(3, height, width, seed)
    assert batch.images.shape == (3, 3, height, width)
    assert batch.images.dtype == torch.uint8
    for levels in batch.levels.numpy():
        for outer, inner in pairwise(levels):
            pairs = np.unique(np.stack([inner.ravel(), outer.ravel()]), axis=1)
            assert len(np.unique(pairs[0])) == pairs.shape[1]


def test_the_same_seed_gives_the_same_scenes():
    generator = SceneGenerator(most_things=6)
    first, second, other = (generator.draw(2, 48, 64, seed) for seed in (7, 7, 8))
    assert torch.equal(first.images, second.images)
    assert torch.equal(first.levels, second.levels)
    assert not torch.equal(first.levels, other.levels)


def test_scenes_have_parts_and_details_and_colours_that_tell_them_apart():
    batch = SceneGenerator().draw(8, 96, 96, 3)
    numbers = [[len(np.unique(level)) for level in levels] for levels in batch.levels.numpy()]
    whole, part, detail = np.sum(numbers, 0)
    assert whole < part < detail
    image, levels = batch.images[0].float(), batch.levels[0, 2]
    means = torch.stack([image[:, levels == number].mean(1) for number in levels.unique()])
    assert means.std(0).mean() > 10


def test_region_masks_lists_each_region_once_coarsest_first():
    whole = np.zeros((4, 6), np.int32)
    whole[:, :4] = 5
    part = whole.copy()
    part[:2, :4] = 6
    detail = part.copy()
    detail[0, 0] = 400
    found = [rle.decode(mask) for mask in region_masks(np.stack([whole, part, detail]))]
    expected = [whole == 5, part == 5, part == 6, detail == 6, detail == 400]
    assert len(found) == len(expected)
    assert all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))


def test_more_regions_than_a_byte_counts():
    level = np.arange(1, 601, dtype=np.int32).reshape(20, 30)
    masks = region_masks(np.stack([level] * 3))
    assert len(masks) == 600
    assert {int(mask.area()) for mask in masks} == {1}
    assert rle.decode(masks[599])[19, 29]


def test_a_pixel_of_a_detail_lies_in_its_part_and_its_whole():
    data = Scenes(4, DataFilters(min_area=12), side=96)
    depths = []
    for image in data.epoch(0, seed=2):
        stack = np.stack([rle.decode(mask) for mask in image.masks])
        depths.append(stack.sum(0).max())
        assert stack.sum(0).max() <= 3
    assert max(depths) == 3


def test_every_epoch_has_new_scenes():
    data = Scenes(3, DataFilters(), side=32)
    first, second = ({i.image_id: i.image for i in data.epoch(epoch, seed=0)} for epoch in (0, 1))
    assert not first.keys() & second.keys()


def test_an_outline_covers_half_at_its_edge():
    frame = Frame.of(64, 64, torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    outlines = Outlines.draw(generator, torch.tensor([[32.0, 32.0]]), torch.tensor([30.0]), frame.x.device, bent=0.0)
    u, v = outlines.coordinates(frame)
    coverage = outlines.coverage(u, v)[0]
    norm = (u.abs() ** outlines.power + v.abs() ** outlines.power)[0]
    assert torch.equal(coverage >= 0.5, norm <= 1)
