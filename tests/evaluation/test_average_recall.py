"""Average recall of planted proposals."""

from __future__ import annotations

import contextlib
import io
import tracemalloc

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
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


def scattered(rng: np.random.Generator, count: int) -> list[RLEMask]:
    y, x = np.mgrid[:100, :120]
    discs = rng.integers((100, 120, 50), size=(count, 3))
    return [rle.encode((y - cy) ** 2 + (x - cx) ** 2 <= r * r) for cy, cx, r in discs]


def test_image_after_image_gives_the_figures_of_all_at_once():
    rng = np.random.default_rng(3)
    measured = AverageRecall()
    truths, found = COCO(), []
    truths.dataset = {"images": [], "annotations": [], "categories": [{"id": 1}], "info": {}}
    for image, (objects, crowds, proposals) in enumerate(
        [(5, 1, 180), (0, 0, 7), (3, 0, 0), (9, 2, 130), (0, 0, 0)], 1
    ):
        own, around, answers = (scattered(rng, count) for count in (objects, crowds, proposals))
        answers[: len(own)] = own[: len(answers)]
        scores = rng.integers(0, 9, proposals) / 9  # of which many are equal
        counts = [rle.counts_string(runs) for runs in answers]
        measured.add(100, 120, own, around, counts, scores)
        truths.dataset["images"].append({"id": image, "height": 100, "width": 120})
        common = {"image_id": image, "category_id": 1}
        for crowd, runs in [*((0, runs) for runs in own), *((1, runs) for runs in around)]:
            segmentation = {"size": [100, 120], "counts": rle.counts_string(runs)}
            box = {"area": float(runs.area()), "bbox": [0, 0, 1, 1], "id": len(truths.dataset["annotations"]) + 1}
            truths.dataset["annotations"].append({**common, **box, "iscrowd": crowd, "segmentation": segmentation})
        found += [
            {**common, "segmentation": {"size": [100, 120], "counts": runs}, "score": float(score)}
            for runs, score in zip(counts, scores, strict=True)
        ]
    with contextlib.redirect_stdout(io.StringIO()):
        truths.createIndex()
        evaluator = COCOeval(truths, truths.loadRes(found), "segm")
        evaluator.params.useCats = 0
        evaluator.params.maxDets = [100, 1000]
        evaluator.params.areaRngLbl = ["all", "small", "medium", "large"]
        evaluator.params.areaRng = [[0, 1e10], [0, 32**2], [32**2, 96**2], [96**2, 1e10]]
        evaluator.evaluate()
        evaluator.accumulate()
    recall = evaluator.eval["recall"][:, 0]
    for m, by_size in enumerate(measured.result().values()):
        for a, value in enumerate(by_size.values()):
            assert (value is None) == bool((recall[:, a, m] < 0).any())
            assert value is None or value == recall[:, a, m].mean()


def test_memory_does_not_grow_with_the_images():
    rng = np.random.default_rng(0)
    truths, found = scattered(rng, 4), [rle.counts_string(runs) for runs in scattered(rng, 150)]
    measured = AverageRecall()

    def add(count: int) -> int:
        for _ in range(count):
            measured.add(100, 120, truths, [], found, np.linspace(1, 0, len(found)))
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        after_four = add(4)
        assert add(8) - after_four < 50_000  # 150 proposals were some 100 kB an image
    finally:
        tracemalloc.stop()
