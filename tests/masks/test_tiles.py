"""Counting by tiles: what takes the place of torch's reductions gives their results."""

from __future__ import annotations

import pytest
import torch

from data_engine.masks.tiles import _most


@pytest.mark.parametrize("width", [1, 31, 32, 40, 41, 63, 64, 72, 84, 95, 96, 102, 127, 200])
def test_the_largest_of_rows_and_columns(width):
    pixels = torch.randn(7, 13, width, generator=torch.Generator().manual_seed(width))
    rows, columns = _most(pixels)
    assert torch.equal(rows, pixels.amax(2))
    assert torch.equal(columns, pixels.amax(1))
