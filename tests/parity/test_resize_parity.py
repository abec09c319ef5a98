"""Resizing and prompt coordinates against segment-anything's ResizeLongestSide: equal, to the bit."""

import numpy as np
from hypothesis import example, given, settings
from hypothesis import strategies as st
from parity.reference import ResizeLongestSide

from data_engine.sam.resize import resize_image, resized_shape, scale_points

sides = st.integers(1, 300)
long_sides = st.sampled_from([64, 100, 224, 255])


@settings(max_examples=150, deadline=None)
@given(height=sides, width=sides, long_side=long_sides)
@example(height=255, width=3, long_side=255)
@example(height=1, width=1, long_side=64)
def test_image(height, width, long_side):
    if min(resized_shape(height, width, long_side)) == 0:
        return  # see test_extreme_strips
    image = np.random.default_rng(height).integers(0, 256, (height, width, 3), np.uint8)
    expected = ResizeLongestSide(long_side).apply_image(image)
    np.testing.assert_array_equal(resize_image(image, long_side), expected)


@given(height=st.integers(1, 20_000), width=st.integers(1, 20_000), long_side=st.sampled_from([64, 1024]))
def test_shape(height, width, long_side):
    shape = resized_shape(height, width, long_side)
    assert shape == ResizeLongestSide.get_preprocess_shape(height, width, long_side)
    assert max(shape) == long_side


@given(
    height=sides,
    width=sides,
    long_side=long_sides,
    points=st.lists(st.tuples(st.floats(-10, 400), st.floats(-10, 400)), max_size=4),
)
def test_coordinates(height, width, long_side, points):
    if min(resized_shape(height, width, long_side)) == 0:
        return
    points = np.array(points).reshape(-1, 2)
    expected = ResizeLongestSide(long_side).apply_coords(points, (height, width))
    np.testing.assert_array_equal(scale_points(points, (height, width), long_side), expected)


def test_extreme_strips_keep_one_pixel():
    """The reference raises for these."""
    image = np.random.default_rng(0).integers(0, 256, (1, 1000, 3), np.uint8)
    assert resize_image(image, 64).shape == (1, 64, 3)
    np.testing.assert_array_equal(scale_points(np.array([[500.0, 0.5]]), (1, 1000), 64), [[32, 0.5]])
