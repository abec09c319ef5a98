"""What the trainer is fed: reproducible, and right about what was clicked."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pytest
import torch
from train.tiny_training import ARCHITECTURE, stream_for, write_photographs

from data_engine.train.prompts import shrink
from data_engine.train.samples import Sample, SampleStream, batches


@pytest.fixture(scope="module")
def stream(tmp_path_factory: pytest.TempPathFactory) -> SampleStream:
    return stream_for(write_photographs(tmp_path_factory.mktemp("photos")))


@pytest.fixture(scope="module")
def samples(stream: SampleStream) -> list[Sample]:
    return [stream[i] for i in range(24)]


def tensors(sample: Sample) -> Iterator[torch.Tensor]:
    yield from (sample.pixels, sample.clicks, sample.boxes, sample.targets, sample.valid)


def test_a_sample_is_a_function_of_its_number(stream, samples):
    again = stream[7]
    assert all(torch.equal(a, b) for a, b in zip(tensors(samples[7]), tensors(again), strict=True))
    assert not torch.equal(samples[7].pixels, samples[8].pixels)


def test_batches_go_on_anywhere_with_any_number_of_workers(stream):
    whole = list(batches(stream, start=0, count=3, size=2, workers=0))
    rest = list(batches(stream, start=1, count=3, size=2, workers=1))
    for expected, found in zip(whole[1:], rest, strict=True):
        assert all(torch.equal(a.pixels, b.pixels) for a, b in zip(expected, found, strict=True))


def test_clicks_lie_in_their_targets(samples):
    stride = ARCHITECTURE.patch_size // 4
    inside = []
    for sample in samples:
        for click, targets, valid in zip(sample.clicks, sample.targets, sample.valid, strict=False):
            x, y = ((click + 0.5) / stride).long().clamp(0, targets.shape[-1] - 1)
            inside += targets[valid][:, y, x].tolist()
    assert np.mean(inside) > 0.9  # a click within a pixel of a boundary may fall into the neighbouring mask cell


def test_boxes_enclose_their_one_target(samples):
    stride = ARCHITECTURE.patch_size // 4
    for sample in samples:
        count = len(sample.clicks)
        assert sample.valid[count:, 0].all()
        assert not sample.valid[count:, 1:].any()
        for box, target in zip(sample.boxes, sample.targets[count:, 0], strict=True):
            ys, xs = target.nonzero(as_tuple=True)
            if len(ys):
                extent = torch.stack([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]) * stride
                slack = 0.1 * max(extent[2] - extent[0], extent[3] - extent[1]) + 2 * stride
                assert (box - extent).abs().max() <= slack


def test_targets_of_a_click_are_nested_coarsest_first(samples):
    for sample in samples:
        for targets, valid in zip(sample.targets, sample.valid, strict=True):
            assert valid.any()
            known = targets[valid]
            for coarse, fine in pairwise(known):
                outside = (fine & ~coarse).sum()
                assert outside <= 0.1 * fine.sum() + 2  # cells at the boundary are shared
                assert fine.sum() <= coarse.sum() + 2


def test_nothing_is_prompted_outside_the_image(samples):
    for sample in samples:
        height, width = sample.size
        assert max(sample.size) == ARCHITECTURE.image_size
        assert (sample.clicks >= -0.5).all()
        assert (sample.clicks <= torch.tensor([width, height])).all()
        assert (sample.boxes[:, 2:] <= torch.tensor([width, height])).all()


def test_shrinking_sets_cells_that_are_half_covered():
    mask = np.zeros((4, 6), bool)
    mask[:2, :2] = True  # a whole cell
    mask[0, 2:4] = True  # half a cell
    mask[2, 4] = True  # a quarter
    expected = np.zeros((4, 4), bool)
    expected[0, :2] = True
    np.testing.assert_array_equal(shrink(mask, frame=8, side=4), expected)
