from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from parity.planted import PlantedSegmenter, picture
from torch import Tensor

from data_engine.errors import DataEngineError, UsageError
from data_engine.masks.generator import Interrupted, MaskGenerator
from data_engine.masks.grid import CropWindow
from data_engine.masks.image_masks import ImageMasks
from data_engine.masks.prompting import EDGE_TOLERANCE, NonFiniteOutput, near_inner_edge
from data_engine.sam.segmenter import Decoded, Embeddings, View

SETTINGS: dict[str, Any] = {
    "points_per_side": 10,
    "stability_score_thresh": 0.6,
    "crop_n_layers": 1,
    "min_mask_region_area": 50,
}
IMAGE = picture(180, 250)


class FailingSegmenter(PlantedSegmenter):
    """Planted answers, spoilt by `spoil(call, answer)` before they are given."""

    def __init__(self, spoil: Callable[[int, Decoded], Decoded]) -> None:
        super().__init__()
        self.spoil = spoil
        self.calls: list[int] = []

    def decode(self, embeddings: Embeddings, view: int, *, points: Tensor, labels: Tensor, **_: object) -> Decoded:
        self.calls.append(len(points))
        return self.spoil(len(self.calls), super().decode(embeddings, view, points=points, labels=labels))


def run(image: np.ndarray = IMAGE, segmenter: PlantedSegmenter | None = None, **overrides: Any) -> ImageMasks:
    generator = MaskGenerator(segmenter or PlantedSegmenter(), **{**SETTINGS, **overrides})
    return generator.run(generator.prepare(image))


def assert_equal(a: ImageMasks, b: ImageMasks) -> None:
    assert a.counts == b.counts
    for name in ("boxes", "area", "predicted_iou", "stability_score", "points", "crop_boxes", "crop_layer"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
        assert getattr(a, name).dtype == getattr(b, name).dtype
    assert (a.height, a.width, a.filtered) == (b.height, b.width, b.filtered)


def test_a_batch_is_its_images_one_by_one() -> None:
    images = [picture(180, 250), picture(250, 180), picture(90, 90), picture(180, 250), picture(3, 2)]
    generator = MaskGenerator(PlantedSegmenter(), **SETTINGS)
    together = generator.generate_batch(iter(images))
    assert len(together) == len(images)
    for image, masks in zip(images, together, strict=True):
        assert_equal(masks, run(image))
        records = generator.generate(image)
        assert [record["point_coords"][0] for record in records] == masks.points.tolist()


@pytest.mark.parametrize("points_per_batch", [1, 7, 48, 1000])
@pytest.mark.parametrize("prompts_per_chunk", [1, 13, 1000])
def test_points_per_batch_changes_nothing(points_per_batch: int, prompts_per_chunk: int) -> None:
    segmenter = PlantedSegmenter()
    segmenter.prompts_per_chunk = prompts_per_chunk
    assert_equal(run(segmenter=segmenter, points_per_batch=points_per_batch), run())


def test_no_more_prompts_at_once_than_allowed() -> None:
    segmenter = FailingSegmenter(lambda _, answer: answer)
    run(segmenter=segmenter, points_per_batch=7)
    assert max(segmenter.calls) == 7
    assert sum(segmenter.calls) == 5 * 100
    segmenter.calls.clear()
    run(segmenter=segmenter, points_per_batch=1000)
    assert max(segmenter.calls) == segmenter.prompts_per_chunk


@pytest.mark.parametrize("memory_budget", [0, 50_000, 400_000])
def test_memory_budget_changes_nothing(memory_budget: int) -> None:
    assert_equal(run(memory_budget=memory_budget), run())


def test_every_candidate_is_accounted_for() -> None:
    masks = run(drop_small_masks=True, max_mask_area_fraction=0.2)
    counts = masks.filtered.as_dict()
    assert counts.pop("candidates") == 5 * 100 * 3
    assert all(counts.values())  # each filter had something to do
    assert sum(counts.values()) + len(masks) == 5 * 100 * 3


def test_thresholds_hold_for_what_stays() -> None:
    masks = run(pred_iou_thresh=0.8, stability_score_thresh=0.7, max_mask_area_fraction=0.1)
    assert len(masks) > 20
    assert (masks.predicted_iou > 0.8).all()
    assert (masks.stability_score >= np.float32(0.7)).all()
    boxes, windows = masks.boxes, masks.crop_boxes
    inner = (windows[:, 0] > 0) & (boxes[:, 0] <= windows[:, 0] + EDGE_TOLERANCE) & (boxes[:, 0] > EDGE_TOLERANCE)
    assert not inner.any()


def test_thresholds_of_scores_that_lie_on_them() -> None:
    """Predicted IoU has to exceed its threshold, stability has to reach its own (float32, like the scores)."""
    scores = torch.tensor([0.88, 0.881, 0.9])

    def on_threshold(_: int, answer: Decoded) -> Decoded:
        return Decoded(scores.expand(len(answer.iou), 3), answer._logits)

    kept = run(segmenter=FailingSegmenter(on_threshold), crop_n_layers=0, box_nms_thresh=1.0).predicted_iou
    assert set(kept.tolist()) == set(scores[1:].tolist())
    everything = run(stability_score_thresh=0.0, crop_n_layers=0, box_nms_thresh=1.0, min_mask_region_area=0)
    value = float(np.sort(everything.stability_score)[len(everything) // 2])
    settings = {"crop_n_layers": 0, "box_nms_thresh": 1.0, "min_mask_region_area": 0}
    assert value in run(stability_score_thresh=value, **settings).stability_score.tolist()
    assert value not in run(stability_score_thresh=value + 1e-6, **settings).stability_score.tolist()


def test_no_threshold_keeps_negative_predictions_too() -> None:
    """The IoU head has no sigmoid: 0 means no filter, not positive scores only, as in the reference."""

    def negative(_: int, answer: Decoded) -> Decoded:
        return Decoded(-answer.iou, answer._logits)

    assert (run(segmenter=FailingSegmenter(negative), pred_iou_thresh=0.0).predicted_iou < 0).any()
    assert len(run(segmenter=FailingSegmenter(negative), pred_iou_thresh=0.01)) == 0


@pytest.mark.parametrize("area_of_box", [(0.5, 1), (0.95, 0), (0.951, 0), (0.949, 1)])
def test_95_percent_rule(area_of_box: tuple[float, int]) -> None:
    """A mask of exactly 95 % of the image goes, a smaller one stays."""
    share, survivors = area_of_box

    class Bars(PlantedSegmenter):
        image_size = logits_size = 1000

        def decode(self, embeddings: Embeddings, view: int, *, points: Tensor, **_: object) -> Decoded:
            logits = torch.full((len(points), 3, 1000, 1000), -9.0)
            logits[..., : round(1000 * share)] = 9.0
            return Decoded(torch.ones(len(points), 3), lambda wanted: logits[wanted])

    generator = MaskGenerator(Bars(), points_per_side=1, max_mask_area_fraction=0.95)
    (masks,) = generator.generate_batch([picture(1000, 1000)])
    assert len(masks) == survivors
    assert masks.filtered.rejected_area == (0 if survivors else 3)


def test_interrupted_stops_at_once() -> None:
    segmenter = FailingSegmenter(lambda _, answer: answer)
    generator = MaskGenerator(segmenter, points_per_batch=10, **SETTINGS)
    prepared = generator.prepare(IMAGE)
    answers = iter([False, False, True])
    with pytest.raises(Interrupted):
        generator.run(prepared, lambda: next(answers))
    assert segmenter.calls == [10, 10, 10]
    assert_equal(generator.run(prepared), run())  # nothing stuck from before


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("where", ["embeddings", "iou", "logits"])
def test_numbers_that_are_none(bad: float, where: str) -> None:
    def spoil(call: int, answer: Decoded) -> Decoded:
        if call == 7:
            if where == "iou":
                answer.iou[3, 1] = bad
            elif where == "logits":
                logits = answer._logits

                def spoilt(wanted: Tensor) -> Tensor:
                    found = logits(wanted).clone()
                    found[-1, 5, 5] = bad
                    return found

                return Decoded(answer.iou, spoilt)
        return answer

    segmenter = FailingSegmenter(spoil)
    if where == "embeddings":
        segmenter.encode = lambda views: Embeddings(torch.full((len(views), 1, 1, 1), bad))  # type: ignore[method-assign]
    with pytest.raises(NonFiniteOutput, match="precision: reference") as caught:
        run(segmenter=segmenter)
    assert isinstance(caught.value, DataEngineError)
    assert ("encoder" if where == "embeddings" else "decoder") in str(caught.value)


def test_out_of_memory_halves_the_chunk_and_changes_nothing() -> None:
    def spoil(call: int, answer: Decoded) -> Decoded:
        if len(answer.iou) > 9:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return answer

    segmenter = FailingSegmenter(spoil)
    assert_equal(run(segmenter=segmenter), run())
    assert segmenter.calls[:4] == [48, 24, 12, 6]
    assert max(segmenter.calls[4:]) == 6  # learned once


def test_out_of_memory_with_one_prompt_is_an_error() -> None:
    def spoil(call: int, answer: Decoded) -> Decoded:
        raise torch.OutOfMemoryError("CUDA out of memory")

    segmenter = FailingSegmenter(spoil)
    with pytest.raises(torch.OutOfMemoryError):
        run(segmenter=segmenter)
    assert segmenter.calls == [48, 24, 12, 6, 3, 1]


def test_prepare_cuts_and_resizes_every_window() -> None:
    class Recorder(PlantedSegmenter):
        def prepare(self, image: np.ndarray) -> View:
            cut.append(image.copy())
            return super().prepare(image)

    cut: list[np.ndarray] = []
    image = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
    prepared = MaskGenerator(Recorder(), points_per_side=4, crop_n_layers=1).prepare(image)
    assert (prepared.height, prepared.width, len(prepared.views)) == (60, 80, 5)
    for window, pixels in zip(prepared.windows, cut, strict=True):
        np.testing.assert_array_equal(pixels, image[window.y0 : window.y1, window.x0 : window.x1])


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((10, 10), np.uint8),
        np.zeros((10, 10, 4), np.uint8),
        np.zeros((10, 10, 3), np.float32),
        np.zeros((0, 10, 3), np.uint8),
    ],
    ids=lambda image: f"{image.shape} {image.dtype}",
)
def test_what_is_no_image(image: np.ndarray) -> None:
    with pytest.raises(UsageError, match="HxWx3 uint8"):
        MaskGenerator(PlantedSegmenter(), points_per_side=2).generate(image)


@pytest.mark.parametrize(
    ("box", "near"),
    [
        ((150, 150, 180, 180), False),
        ((121, 150, 180, 180), False),
        ((120, 150, 180, 180), True),
        ((150, 120, 180, 180), True),
        ((150, 150, 280, 180), True),
        ((150, 150, 279, 180), False),
        ((150, 150, 180, 380), True),
        ((150, 150, 180, 379), False),
        ((90, 150, 180, 180), True),
        ((79, 150, 180, 180), False),
    ],
)
def test_near_inner_edge(box: tuple[int, int, int, int], near: bool) -> None:
    window = CropWindow(100, 100, 300, 400, 1)
    assert near_inner_edge(np.array([box]), window, 1000, 1000).tolist() == [near]


def test_near_an_edge_of_the_image_is_no_inner_edge() -> None:
    boxes = np.array([[0, 0, 99, 99], [5, 5, 50, 50], [0, 0, 50, 50], [21, 21, 70, 50]])
    window = CropWindow(0, 0, 100, 100, 1)
    assert near_inner_edge(boxes, window, 100, 100).tolist() == [False] * 4
    assert near_inner_edge(boxes, window, 1000, 100).tolist() == [True, False, False, False]
    # A crop that ends within 20 pixels of the image's end: boxes near both are not cut off.
    assert near_inner_edge(boxes, window, 110, 115).tolist() == [False] * 4
