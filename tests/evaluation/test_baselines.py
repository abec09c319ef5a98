"""Baselines are worth comparing with, and their choice by size uses no ground truth of the object."""

from __future__ import annotations

import numpy as np
from evaluation.stripes import COLOURS, ids, regions

from data_engine.evaluation.baselines import chosen_by_size, felzenszwalb_answers, flood_answers
from data_engine.evaluation.clicks import deepest_point
from data_engine.masks import rle


def test_baselines_find_flat_colours():
    pixels = COLOURS[ids() - 1]
    clicks = np.array([deepest_point(region) for region in regions()])
    runs = [rle.encode(region) for region in regions()]
    assert felzenszwalb_answers(pixels, runs, clicks).iou.min() > 0.9
    flood = flood_answers(pixels, runs, clicks)
    assert flood.iou.shape == (4, 3)
    assert flood.iou.min() == 1
    np.testing.assert_allclose(flood.share, 0.25)


def test_the_size_nearest_to_the_prior_in_ratio_is_chosen():
    share = np.array([[0.01, 0.1, 0.9], [0.3, 0.02, 0.0], [0.04, 0.5, 0.2]])
    assert chosen_by_size(share, 0.1).tolist() == [1, 0, 2]
