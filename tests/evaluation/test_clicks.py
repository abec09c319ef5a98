"""Where the clicks go, the first and the correcting ones."""

from __future__ import annotations

import numpy as np

from data_engine.evaluation.clicks import BACKGROUND, FOREGROUND, deepest_point, first_click, next_click


def rectangle(top: int, bottom: int, left: int, right: int) -> np.ndarray:
    mask = np.zeros((60, 100), bool)
    mask[top:bottom, left:right] = True
    return mask


def test_the_deepest_point_is_the_middle():
    x, y = deepest_point(rectangle(10, 21, 30, 71))
    assert y == 15
    assert 35 <= x <= 65


def test_the_border_of_the_image_bounds_a_region():
    assert deepest_point(np.ones((11, 11), bool)) == (5, 5)


def test_the_deepest_point_agrees_with_a_search_of_all_distances():
    rng = np.random.default_rng(0)
    for _ in range(5):
        mask = rng.random((14, 17)) < 0.85
        outside = np.argwhere(~np.pad(mask, 1)) - 1
        depth = {(x, y): np.hypot(*(outside - (y, x)).T).min() for y, x in np.argwhere(mask)}
        assert depth[deepest_point(mask)] == max(depth.values())


def test_a_miss_gets_a_foreground_click_in_its_middle():
    truth = rectangle(10, 51, 10, 91)
    answer = rectangle(10, 51, 10, 50)
    x, y, label = next_click(truth, answer)
    assert label == FOREGROUND
    assert (y, 60 < x < 80) == (30, True)


def test_an_excess_gets_a_background_click_in_its_middle():
    truth = rectangle(20, 41, 10, 31)
    answer = rectangle(20, 41, 10, 91)
    x, y, label = next_click(truth, answer)
    assert label == BACKGROUND
    assert (y, 40 < x < 81) == (30, True)


def test_the_deeper_mistake_wins_and_a_tie_is_a_miss():
    truth = rectangle(0, 20, 20, 60)
    assert next_click(truth, rectangle(0, 20, 30, 90))[2] == BACKGROUND  # misses 10 columns, has 30 too many
    assert next_click(truth, rectangle(0, 20, 30, 70))[2] == FOREGROUND


def test_a_pixel_is_not_clicked_twice():
    truth = rectangle(10, 21, 10, 21)
    nothing = np.zeros_like(truth)
    first = next_click(truth, nothing)
    second = next_click(truth, nothing, [first])
    assert first == (15, 15, FOREGROUND)
    assert second[:2] != first[:2]
    assert truth[second[1], second[0]]


def test_a_perfect_answer_repeats_the_first_click():
    truth = rectangle(10, 21, 10, 21)
    assert next_click(truth, truth, [(15, 15, FOREGROUND)]) == first_click(truth) == (15, 15, FOREGROUND)
