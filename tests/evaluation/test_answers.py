"""Clicks and boxes on answers that are known to the pixel."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from evaluation.stripes import COLOURS, STRIPE, StripeSegmenter, ids, regions

from data_engine.errors import DataEngineError
from data_engine.evaluation.answers import box_answers, click_answers
from data_engine.masks import rle
from data_engine.sam.predictor import SamPredictor

RUNS = [rle.encode(region) for region in regions()]


def predictor(segmenter: StripeSegmenter) -> SamPredictor:
    found = SamPredictor(segmenter)
    found.set_image(COLOURS[ids() - 1])
    return found


def shifted_iou(pixels: int, stripe: int) -> float:
    """Of a stripe and its copy so far to the right, cut off by the image."""
    common = STRIPE - pixels
    return common / (STRIPE + (pixels if stripe < 3 else 0))


def test_perfect_masks_give_one():
    asked = predictor(StripeSegmenter())
    for answers in (*click_answers(asked, RUNS, [1, 3]).values(), box_answers(asked, RUNS)):
        for values in (answers.chosen, answers.oracle, answers.single, answers.boundary, answers.boundary_single):
            np.testing.assert_array_equal(values, np.ones(4))


def test_shifted_masks_give_the_iou_that_can_be_counted():
    asked = predictor(StripeSegmenter(shifts=(16, 8, 32), promised=(0.9, 0.5, 0.2), single=4))
    answers = click_answers(asked, RUNS, [1])[1]
    np.testing.assert_allclose(answers.chosen, [shifted_iou(16, i) for i in range(4)])
    np.testing.assert_allclose(answers.oracle, [shifted_iou(8, i) for i in range(4)])
    np.testing.assert_allclose(answers.single, [shifted_iou(4, i) for i in range(4)])
    np.testing.assert_allclose(answers.predicted, np.tile(np.float32([0.9, 0.5, 0.2]), (4, 1)))
    assert (answers.boundary < answers.chosen).all()


def test_the_second_click_corrects_and_takes_the_chosen_logits_along():
    segmenter = StripeSegmenter(shifts=(8, 16, 32), promised=(0.2, 0.9, 0.5), single=32)
    click_answers(predictor(segmenter), RUNS[:1], [2])
    first, second, *_ = segmenter.asked
    assert (first["multimask"], first["masks"]) == (True, None)
    # The chosen answer covers pixels 16 to 79 of a stripe of 64: 16 are missed, 16 too many; a tie asks for the miss.
    assert second["labels"].tolist() == [[1, 1]]
    x, y = second["points"][0, 1].tolist()
    assert (7 <= x <= 8, 0 < y < 255) == (True, True)
    row = second["masks"][0, 0, 5]
    assert ((row > 0).nonzero()[:, 0] == torch.arange(4, 20)).all()


def test_later_clicks_go_on_from_the_single_mask():
    segmenter = StripeSegmenter(single=-32)
    click_answers(predictor(segmenter), RUNS[1:2], [3])
    singles = [asked for asked in segmenter.asked if not asked["multimask"]]
    third = segmenter.asked[-1]
    assert len(third["labels"][0]) == 3
    assert third["masks"][0, 0, 5].gt(0).nonzero()[:, 0].tolist() == list(range(8, 24))  # 64 pixels from 32 on
    assert singles[0]["points"].shape == (1, 2, 2)


@pytest.mark.parametrize("at_once", [1, 3, 100])
def test_how_many_are_asked_at_once_changes_nothing(at_once):
    segmenter = StripeSegmenter(shifts=(16, 8, 32), single=4)
    segmenter.prompts_per_chunk = at_once
    answers = click_answers(predictor(segmenter), RUNS, [1, 2])[2]
    np.testing.assert_allclose(answers.chosen, [shifted_iou(16, i) for i in range(4)])


def test_boxes_are_the_objects_own():
    segmenter = StripeSegmenter()
    box_answers(predictor(segmenter), RUNS)
    boxes = torch.cat([asked["boxes"] for asked in segmenter.asked if asked["multimask"]])
    assert boxes.tolist() == [[64 * i, 0, 64 * i + 63, 255] for i in range(4)]


def test_a_model_that_gives_nan_is_not_scored():
    segmenter = StripeSegmenter(promised=(float("nan"), 0.5, 0.2))
    with pytest.raises(DataEngineError, match="NaN"):
        click_answers(predictor(segmenter), RUNS, [1])
