"""Average recall of planted proposals."""

from __future__ import annotations

import numpy as np
import pytest
from rlemasklib import RLEMask

from data_engine.evaluation.average_recall import AverageRecall
from data_engine.masks import rle


def square(side: int, x: int = 10, y: int = 10) -> RLEMask:
    mask = np.zeros((200, 300), bool)
    mask[y : y + side, x : x + side] = True
    return rle.encode(mask)


def recall(truths, found, crowds=(), scores=None):
    measured = AverageRecall()
    scores = np.linspace(1, 0, len(found)) if scores is None else scores
    measured.add(200, 300, truths, crowds, [rle.counts_string(runs) for runs in found], scores)
    return measured.result()


def test_perfect_masks_have_recall_one_at_every_size():
    truths = [square(20), square(60, x=100), square(100, x=180, y=50)]
    for by_size in recall(truths, truths).values():
        assert by_size == {"all": 1, "small": 1, "medium": 1, "large": 1}


def test_recall_is_the_share_of_thresholds_that_the_overlap_reaches():
    # 100 of 100 + 33 columns: IoU 0.752 reaches 0.50 to 0.75, six of ten thresholds.
    wide = np.zeros((200, 300), bool)
    wide[10:110, 10:143] = True
    found = recall([square(100)], [rle.encode(wide)])
    assert found["AR@100"] == {"all": pytest.approx(0.6), "small": None, "medium": None, "large": pytest.approx(0.6)}


def test_only_the_best_hundred_count_for_the_first():
    truth = square(40)
    junk = [square(5, x=200 + i % 50, y=50 + i // 50) for i in range(400)]
    found = recall([truth], [*junk, truth])
    assert found["AR@100"]["all"] == 0
    assert found["AR@1000"]["all"] == 1
    assert recall([truth], [*junk, truth], scores=np.array([*[0.5] * 400, 0.6]))["AR@100"]["all"] == 1


def test_crowds_do_not_count():
    crowd = square(100, x=150)
    assert recall([square(40)], [square(40)], crowds=[crowd])["AR@100"]["all"] == 1


def test_no_proposals_are_recall_zero_and_more_objects_than_a_byte_are_fine():
    assert recall([square(40)], [])["AR@1000"]["all"] == 0
    many = [square(6, x=8 * (i % 30), y=8 * (i // 30)) for i in range(300)]
    found = recall(many, many)
    assert found["AR@1000"]["all"] == 1
    assert found["AR@100"]["all"] == pytest.approx(100 / 300)
