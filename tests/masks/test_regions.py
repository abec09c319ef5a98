"""Islands and holes against segment-anything's `remove_small_regions`, which labels pixels with OpenCV."""

from __future__ import annotations

import numpy as np
from hypothesis import example, given, settings
from hypothesis import strategies as st
from parity.reference import amg
from scipy import ndimage

from data_engine.masks import regions, rle


def blobs(seed: int, height: int, width: int, smoothness: float, density: float) -> np.ndarray:
    field = np.random.default_rng(seed).standard_normal((height, width))
    field = ndimage.gaussian_filter(field, smoothness) if smoothness else field
    return field > np.quantile(field, 1 - density)


MASKS = st.builds(
    blobs,
    st.integers(0, 2**32 - 1),
    st.integers(1, 70),
    st.integers(1, 70),
    st.sampled_from([0, 0.5, 1, 2, 4]),
    st.sampled_from([0.0, 0.03, 0.1, 0.5, 0.9, 0.97, 1.0]),
)
AREAS = st.integers(1, 80)
CORNERS = np.array([[1, 0, 0, 1], [0, 1, 1, 0], [0, 0, 0, 0], [1, 0, 0, 1]], bool)


@given(MASKS, AREAS)
@example(np.ones((6, 6), bool), 100)
@example(np.zeros((6, 6), bool), 36)
@example(np.zeros((6, 6), bool), 37)
@settings(max_examples=300)
def test_fill_holes(mask: np.ndarray, area: int) -> None:
    expected, _ = amg.remove_small_regions(mask, area, "holes")
    np.testing.assert_array_equal(rle.decode(regions.fill_holes(rle.encode(mask), area)), expected)


@given(MASKS, AREAS)
@example(CORNERS, 1)
@example(CORNERS, 2)  # two diagonal pairs are one component of 8 neighbours
@example(CORNERS, 9)
@settings(max_examples=300)
def test_remove_islands(mask: np.ndarray, area: int) -> None:
    expected, _ = amg.remove_small_regions(mask, area, "islands")
    np.testing.assert_array_equal(rle.decode(regions.remove_islands(rle.encode(mask), area)), expected)


@given(st.integers(0, 2**32 - 1), st.integers(1, 50), st.integers(1, 50), st.sampled_from([0.02, 0.1, 0.2]))
@settings(max_examples=300)
def test_of_equal_islands_all_too_small_the_reference_keeps_the_same_one(
    seed: int, height: int, width: int, density: float
) -> None:
    """Specks tie for the largest: OpenCV's numbering decides which one stays, and ours restates it."""
    mask = np.random.default_rng(seed).random((height, width)) < density
    expected, _ = amg.remove_small_regions(mask, 10_000, "islands")
    np.testing.assert_array_equal(rle.decode(regions.remove_islands(rle.encode(mask), 10_000)), expected)


@given(MASKS)
def test_component_areas(mask: np.ndarray) -> None:
    labels, count = ndimage.label(mask, np.ones((3, 3)))
    expected = np.bincount(labels.ravel(), minlength=count + 1)[1:]
    assert sorted(regions.component_areas(rle.encode(mask)).tolist()) == sorted(expected.tolist())
