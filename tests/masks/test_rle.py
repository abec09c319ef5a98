from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from parity.reference import amg
from pycocotools import mask as coco

from data_engine.masks import rle

SHAPES = st.tuples(st.integers(1, 40), st.integers(1, 40))
MASKS = SHAPES.flatmap(
    lambda shape: st.one_of(
        arrays.arrays(bool, shape),
        st.tuples(st.integers(0, 2**32 - 1), st.floats(0, 1)).map(
            lambda drawn: np.random.default_rng(drawn[0]).random(shape) < drawn[1]
        ),
    )
)


def coco_runs(mask: np.ndarray) -> dict:
    return coco.encode(np.asfortranarray(mask, dtype=np.uint8))


@given(MASKS)
def test_round_trip_and_the_same_bytes_as_pycocotools(mask: np.ndarray) -> None:
    runs = rle.encode(mask)
    expected = coco_runs(mask)
    assert rle.counts_string(runs) == expected["counts"].decode()
    np.testing.assert_array_equal(rle.decode(runs), mask)
    again = rle.from_counts_string(expected["counts"].decode(), *mask.shape)
    np.testing.assert_array_equal(rle.decode(again), mask)
    assert rle.counts_string(again) == expected["counts"].decode()
    assert again.counts.tolist() == amg.mask_to_rle_pytorch(torch.from_numpy(mask)[None])[0]["counts"]


@given(MASKS)
def test_area_and_box(mask: np.ndarray) -> None:
    runs = rle.encode(mask)
    assert runs.area() == coco.area(coco_runs(mask)) == mask.sum()
    assert list(rle.box(runs)) == amg.batched_mask_to_box(torch.from_numpy(mask)[None])[0].tolist()
    x, y, w, h = coco.toBbox(coco_runs(mask)).tolist()
    if mask.any():
        assert rle.box(runs) == (x, y, x + w - 1, y + h - 1)
    else:
        assert rle.box(runs) == (0, 0, 0, 0)


@given(SHAPES, st.integers(0, 2**32 - 1), st.floats(0.01, 0.99))
def test_iou(shape: tuple[int, int], seed: int, density: float) -> None:
    random = np.random.default_rng(seed)
    a, b = (random.random(shape) < density for _ in range(2))
    if a.any() or b.any():
        expected = coco.iou([coco_runs(a)], [coco_runs(b)], [0])[0, 0]
        assert rle.encode(a).iou(rle.encode(b)) == pytest.approx(expected)


@given(MASKS, st.integers(0, 7), st.integers(0, 7), st.integers(0, 7), st.integers(0, 7), st.integers(1, 9))
@settings(max_examples=200)
def test_runs_of_a_window_in_bands(mask: np.ndarray, left: int, top: int, right: int, bottom: int, band: int) -> None:
    """A window's pixels, in bands of columns, make the runs of the whole image."""
    image = np.pad(mask, ((top, bottom), (left, right)))
    columns = torch.from_numpy(mask.T.copy())
    positions = [
        rle.boundaries(columns[start : start + band], left + start, top, image.shape[0])
        for start in range(0, len(columns), band)
    ]
    runs = rle.from_boundaries(np.concatenate(positions), *image.shape)
    assert rle.counts_string(runs) == coco_runs(image)["counts"].decode()


def test_no_pixels_and_all_pixels() -> None:
    nothing = rle.from_boundaries(np.zeros(0, np.int64), 5, 7)
    assert nothing.counts.tolist() == [35]
    assert rle.counts_string(nothing) == coco_runs(np.zeros((5, 7)))["counts"].decode()
    everything = rle.from_boundaries(rle.boundaries(torch.ones(7, 5, dtype=torch.bool), 0, 0, 5), 5, 7)
    assert everything.counts.tolist() == [0, 35]
    assert rle.counts_string(everything) == coco_runs(np.ones((5, 7)))["counts"].decode()
