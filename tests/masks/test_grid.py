from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from parity.reference import amg

from data_engine.masks.grid import crop_windows, layer_point_grids, point_grid
from data_engine.masks.settings import MaskSettings

SIDES = st.integers(1, 3000)
OVERLAPS = st.floats(0, 0.99)


@given(SIDES, SIDES, st.integers(0, 4), OVERLAPS)
def test_crop_windows_are_the_references_that_have_pixels(height: int, width: int, layers: int, ratio: float) -> None:
    windows = crop_windows(height, width, layers, ratio)
    boxes, box_layers = amg.generate_crop_boxes((height, width), layers, ratio)
    expected = [
        (*box, layer) for box, layer in zip(boxes, box_layers, strict=True) if box[0] < box[2] and box[1] < box[3]
    ]
    assert [(w.x0, w.y0, w.x1, w.y1, w.layer) for w in windows] == expected


@given(SIDES, SIDES, st.integers(1, 4), OVERLAPS)
def test_windows_of_each_layer_cover_the_image(height: int, width: int, layers: int, ratio: float) -> None:
    windows = crop_windows(height, width, layers, ratio)
    for layer in range(layers + 1):
        of_layer = [w for w in windows if w.layer == layer]
        for side, spans in (
            (width, {(w.x0, w.x1) for w in of_layer}),
            (height, {(w.y0, w.y1) for w in of_layer}),
        ):
            covered = 0
            for start, end in sorted(spans):
                assert start <= covered
                covered = max(covered, end)
            assert covered == side


def test_windows_of_the_sa1b_recipe() -> None:
    windows = crop_windows(1500, 2250, 2, 512 / 1500)
    assert [sum(w.layer == layer for w in windows) for layer in range(3)] == [1, 4, 16]
    assert {w.shape for w in windows if w.layer == 1} == {(1006, 1381)}
    assert windows[1].area == 1006 * 1381


@given(st.integers(1, 64))
def test_point_grid_is_the_references(points_per_side: int) -> None:
    np.testing.assert_array_equal(point_grid(points_per_side), amg.build_point_grid(points_per_side))


@pytest.mark.parametrize("factor", [1, 2, 3])
@pytest.mark.parametrize("side", [27, 32])
def test_layer_grids_are_the_references(factor: int, side: int) -> None:
    settings = MaskSettings(points_per_side=side, crop_n_layers=3, crop_n_points_downscale_factor=factor)
    ours, theirs = layer_point_grids(settings), amg.build_all_layer_point_grids(side, 3, factor)
    assert len(ours) == len(theirs) == 4
    for mine, yours in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(mine, yours)


def test_own_grids_are_taken_as_they_are() -> None:
    grids = (((0.25, 0.5), (1.0, 0.0)), ((0.1, 0.9),))
    settings = MaskSettings(points_per_side=None, point_grids=grids, crop_n_layers=1)
    assert [grid.tolist() for grid in layer_point_grids(settings)] == [[[0.25, 0.5], [1.0, 0.0]], [[0.1, 0.9]]]
