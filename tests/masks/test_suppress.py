from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from parity.torchvision_standin import batched_nms

from data_engine.masks.suppress import box_nms


def naive(boxes: list[list[int]], scores: list[float], threshold: float) -> list[int]:
    """The definition, pair by pair in Python."""
    kept: list[int] = []
    for i in sorted(range(len(boxes)), key=lambda index: -scores[index]):  # sorted() keeps the order of ties
        if all(iou(boxes[i], boxes[j]) <= threshold for j in kept):
            kept.append(i)
    return kept


def iou(a: list[int], b: list[int]) -> float:
    w = max(min(a[2], b[2]) - max(a[0], b[0]), 0)
    h = max(min(a[3], b[3]) - max(a[1], b[1]), 0)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - w * h
    return w * h / union if union else 0.0  # two empty boxes do not overlap


SPANS = st.tuples(st.integers(0, 12), st.integers(0, 12)).map(sorted)
BOXES = st.lists(st.tuples(SPANS, SPANS).map(lambda xy: [xy[0][0], xy[1][0], xy[0][1], xy[1][1]]), max_size=30)
# No IoU of such small boxes is one of these fractions, so that rounding to float32 decides nothing.
THRESHOLDS = st.sampled_from([0.0, 0.113, 0.307, 0.571, 0.7213, 0.9507, 1.0])


@given(BOXES, THRESHOLDS, st.randoms(use_true_random=False))
@settings(max_examples=300)
def test_agrees_with_the_definition(boxes: list[list[int]], threshold: float, random: object) -> None:
    scores = [random.choice([0.25, 0.5, 0.75]) for _ in boxes]  # type: ignore[attr-defined]
    kept = box_nms(np.array(boxes), np.array(scores, np.float32), threshold)
    assert kept.tolist() == naive(boxes, scores, threshold)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("size", [50, 12_000])
def test_agrees_with_torchvisions_arithmetic(seed: int, size: int) -> None:
    random = np.random.default_rng(seed)
    corners = random.integers(0, size, (400, 2))
    boxes = np.concatenate([corners, corners + random.integers(0, size // 2, (400, 2))], 1)
    scores = random.integers(0, 40, 400).astype(np.float32) / 40
    for threshold in (0.2, 0.5, 0.7):
        expected = batched_nms(
            torch.from_numpy(boxes).float(), torch.from_numpy(scores), torch.zeros(len(boxes)), threshold
        )
        assert box_nms(boxes, scores, threshold).tolist() == expected.tolist()


@pytest.mark.parametrize(
    ("rows", "threshold", "kept"),
    [
        (5, 0.5, [0, 1]),  # exactly the threshold: stays
        (5, 0.49, [0]),
        (7, 0.7, [0, 1]),  # IoU float32(0.7) lies below the double 0.7
        (3, 0.3, [0]),  # IoU float32(0.3) lies above the double 0.3
    ],
)
def test_threshold_is_exclusive_and_compared_in_double(rows: int, threshold: float, kept: list[int]) -> None:
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, rows]])
    assert box_nms(boxes, np.ones(2, np.float32), threshold).tolist() == kept


def test_chain_of_overlaps_and_ties() -> None:
    """A suppressed box suppresses nothing; of equal boxes with equal scores the first stays."""
    boxes = np.array([[0, 0, 10, 10], [4, 0, 14, 10], [8, 0, 18, 10], [0, 0, 10, 10]])
    assert box_nms(boxes, np.array([0.9, 0.8, 0.7, 0.9]), 0.3).tolist() == [0, 2]
    assert box_nms(boxes, np.array([0.7, 0.8, 0.7, 0.7]), 0.3).tolist() == [1]
    assert box_nms(boxes, np.zeros(4), 1.0).tolist() == [0, 1, 2, 3]


def test_no_boxes() -> None:
    kept = box_nms(np.zeros((0, 4), np.int64), np.zeros(0, np.float32), 0.7)
    assert kept.shape == (0,)
    assert kept.dtype == np.int64
