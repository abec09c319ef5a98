"""IoU, boundary IoU and sizes against counting by hand and brute force."""

from __future__ import annotations

import numpy as np
import pytest

from data_engine.evaluation.scores import boundary, boundary_iou, iou, size_of


def test_iou_broadcasts_masks_against_a_region():
    region = np.zeros((4, 4), bool)
    region[:2] = True
    masks = np.stack([region, ~region, np.ones_like(region), np.zeros_like(region)])
    np.testing.assert_allclose(iou(masks, region), [1, 0, 0.5, 0])
    assert iou(np.zeros((3, 3), bool), np.zeros((3, 3), bool)) == 0


@pytest.mark.parametrize("width", [1, 2, 5])
def test_the_boundary_agrees_with_looking_around_every_pixel(width):
    rng = np.random.default_rng(width)
    coarse = rng.random((6, 7)) < 0.6
    mask = coarse.repeat(7, 0).repeat(6, 1)
    mask[rng.integers(42, size=5), rng.integers(42, size=5)] ^= True
    padded = np.pad(mask, width)
    expected = np.zeros_like(mask)
    for y, x in np.argwhere(mask):
        expected[y, x] = not padded[y : y + 2 * width + 1, x : x + 2 * width + 1].all()
    np.testing.assert_array_equal(boundary(mask, width), expected)


@pytest.mark.parametrize("width", [1, 3])
def test_the_boundary_agrees_with_repeated_erosion_as_in_the_reference(width):
    cv2 = pytest.importorskip("cv2")
    mask = np.zeros((60, 80), np.uint8)
    cv2.circle(mask, (30, 25), 20, 1, -1)
    mask[40:, 50:] = 1  # touches the border
    padded = cv2.copyMakeBorder(mask, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    eroded = cv2.erode(padded, np.ones((3, 3), np.uint8), iterations=width)[1:-1, 1:-1]
    np.testing.assert_array_equal(boundary(mask.astype(bool), width), (mask - eroded).astype(bool))


def test_boundary_iou_of_shifted_squares_is_what_can_be_counted():
    # The diagonal of 300x400 is 500: boundaries are 10 pixels wide.
    a, b = np.zeros((2, 300, 400), bool)
    a[100:200, 100:200] = True
    b[100:200, 105:205] = True
    ring = 100 * 100 - 80 * 80
    # Rows at the top and bottom: 2 x 10 x 95 in common; columns: 2 x 80 x 5.
    common = 2 * 10 * 95 + 2 * 80 * 5
    assert boundary_iou(a, b) == pytest.approx(common / (2 * ring - common))
    assert boundary_iou(a, a) == 1
    assert boundary_iou(a, np.zeros_like(a)) == 0


def test_sizes_are_cocos():
    areas = np.array([1, 1023, 1024, 9215, 9216, 10**7])
    assert size_of(areas).tolist() == ["small", "small", "medium", "medium", "large", "large"]
