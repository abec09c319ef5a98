"""Adaptive prompting: which points run, and what must not change by it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from parity.planted import PlantedSegmenter, picture
from torch import Tensor

from data_engine.masks import rle
from data_engine.masks.candidates import Candidates, put_into_runs
from data_engine.masks.generator import MaskGenerator
from data_engine.masks.image_masks import ImageMasks, MaskCounts
from data_engine.masks.point_rounds import AdaptivePrompter, explained_points, point_rounds
from data_engine.masks.prompting import Prompter, SeenWindow
from data_engine.masks.settings import MaskSettings
from data_engine.masks.stages import Stages
from data_engine.sam.segmenter import Decoded, Embeddings

SETTINGS: dict[str, Any] = {
    "points_per_side": 10,
    "stability_score_thresh": 0.6,
    "crop_n_layers": 1,
    "min_mask_region_area": 50,
    "adaptive_points": True,
}


class Watched(PlantedSegmenter):
    """Planted answers, far enough apart for neighbouring clicks to agree; remembers what was asked."""

    def __init__(self) -> None:
        super().__init__(spacing=70.0)
        self.points: list[tuple[float, float]] = []

    def decode(self, embeddings: Embeddings, view: int, *, points: Tensor, labels: Tensor, **_: object) -> Decoded:
        self.points += [tuple(point) for point in points[:, 0].tolist()]
        return super().decode(embeddings, view, points=points, labels=labels)


def run(segmenter: PlantedSegmenter | None = None, **overrides: Any) -> ImageMasks:
    generator = MaskGenerator(segmenter or Watched(), **{**SETTINGS, **overrides})
    return generator.run(generator.prepare(picture(180, 250)))


def columns(masks: ImageMasks) -> list[Any]:
    scores = masks.predicted_iou.tolist(), masks.stability_score.tolist()
    return [masks.counts, scores, masks.points.tolist(), masks.crop_boxes.tolist(), masks.filtered]


@pytest.mark.parametrize("step", [2, 4, 8])
@pytest.mark.parametrize("side", [1, 2, 3, 7, 10, 32])
def test_rounds_are_finer_and_finer_grids_and_all_points_once(side: int, step: int) -> None:
    rounds = point_rounds(side, step)
    assert sorted(np.concatenate(rounds).tolist()) == list(range(side * side))
    so_far = np.zeros((side, side), bool)
    for number, chosen in enumerate(rounds):
        assert (np.diff(chosen) > 0).all()
        so_far.flat[chosen] = True
        lines = np.flatnonzero(so_far.any(0))
        assert set(np.diff(lines).tolist()) <= {step >> number}
        np.testing.assert_array_equal(so_far, so_far.any(1)[:, None] & so_far.any(0))
    first = np.flatnonzero(np.isin(np.arange(side), rounds[0] % side))
    assert abs(first[0] - (side - 1 - first[-1])) <= max(1, step // 2)  # about the middle


def explained(covers: list[str], areas: list[int], prompts: list[int], threshold: float = 0.7) -> str:
    masks = torch.tensor([[point == "x" for point in mask] for mask in covers])
    found = explained_points(masks, np.array(areas), np.array(prompts), threshold)
    return "".join("x" if point else "." for point in found.tolist())


def test_points_are_explained_by_masks_that_agree() -> None:
    assert explained(["xxxx..", "xxxx.."], [40, 41], [0, 1]) == "xxxx.."
    assert explained(["xxxx..", "xxxxx."], [40, 50], [0, 1]) == "xxxxx."  # IoU 4/5
    assert explained(["xxx...", "xxxxx."], [40, 41], [0, 1]) == "......"  # 3/5


def test_masks_of_one_prompt_do_not_agree() -> None:
    assert explained(["xxxx..", "xxxx.."], [40, 41], [7, 7]) == "......"
    assert explained(["xxxx..", "xxxx..", "xxxx.."], [40, 41, 41], [7, 7, 8]) == "xxxx.."


def test_masks_of_other_sizes_do_not_agree() -> None:
    """On the same points of the grid, but half as large."""
    assert explained(["xx....", "xx...."], [40, 20], [0, 1]) == "......"


def test_what_was_seen_once_is_looked_at_again() -> None:
    assert explained(["xxxxxx", "xxxxxx", "..xx.."], [60, 60, 20], [0, 1, 2]) == "xx..xx"
    assert explained(["xxxxxx", "xxxxxx", "..xx..", "..xx.."], [60, 60, 20, 20], [0, 1, 2, 1]) == "xxxxxx"


def test_points_of_a_grid_without_masks() -> None:
    found = explained_points(torch.zeros(0, 6, dtype=torch.bool), np.zeros(0, np.int64), np.zeros(0, np.int64), 0.7)
    assert found.tolist() == [False] * 6


def test_pairs_in_chunks_agree_as_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    covers = torch.from_numpy(random.random((40, 30)) < 0.5)[random.integers(0, 20, 40)]
    arguments = covers, random.integers(90, 110, 40), random.integers(0, 20, 40), 0.7
    expected = explained_points(*arguments)
    monkeypatch.setattr("data_engine.masks.point_rounds._PAIRS_AT_ONCE", 100)
    assert explained_points(*arguments).tolist() == expected.tolist()


def test_where_masks_never_agree_the_result_is_the_full_grids() -> None:
    """With thresholds of 1 nothing is a duplicate. The order is that of the grid, not of the rounds."""
    for step in (2, 4):
        settings = {"box_nms_thresh": 1.0, "crop_nms_thresh": 0.7, "adaptive_step": step}
        assert columns(run(**settings)) == columns(run(**settings, adaptive_points=False))


@pytest.mark.parametrize("step", [2, 4, 8])
def test_fewer_points_run_and_all_candidates_are_accounted_for(step: int) -> None:
    segmenter = Watched()
    masks = run(segmenter, adaptive_step=step)
    assert 5 * 4 <= len(segmenter.points) < 0.9 * 5 * 100
    counts = masks.filtered.as_dict()
    assert counts.pop("candidates") == 3 * len(segmenter.points) == sum(counts.values()) + len(masks)
    full = Watched()
    run(full, adaptive_points=False)
    assert set(segmenter.points) < set(full.points)
    assert len(set(segmenter.points)) == len(segmenter.points)


def test_one_answer_everywhere_needs_no_second_round() -> None:
    class Same(Watched):
        def decode(self, embeddings: Embeddings, view: int, *, points: Tensor, **_: object) -> Decoded:
            super().decode(embeddings, view, points=points, labels=torch.ones(len(points), 1))
            return Decoded(torch.ones(len(points), 3), lambda wanted: torch.full((len(points), 3, 64, 64), 9.0)[wanted])

    segmenter = Same()
    assert len(run(segmenter, points_per_side=16, adaptive_step=4, crop_n_layers=0)) == 1
    assert len(segmenter.points) == 16


def test_nothing_found_means_every_point() -> None:
    segmenter = Watched()
    assert len(run(segmenter, pred_iou_thresh=2.0)) == 0
    assert len(segmenter.points) == 5 * 100


@pytest.mark.parametrize("points_per_batch", [1, 7, 1000])
@pytest.mark.parametrize("prompts_per_chunk", [3, 1000])
@pytest.mark.parametrize("threads", [1, 3])
def test_chunks_and_threads_change_nothing(points_per_batch: int, prompts_per_chunk: int, threads: int) -> None:
    segmenter = Watched()
    segmenter.prompts_per_chunk = prompts_per_chunk
    segmenter.prompt_threads = threads
    found = run(segmenter, points_per_batch=points_per_batch, adaptive_step=4)
    assert columns(found) == columns(run(adaptive_step=4))


@pytest.mark.parametrize("memory_budget", [0, 50_000])
@pytest.mark.parametrize("suppression", ["box", "mask"])
def test_memory_budget_changes_nothing(memory_budget: int, suppression: str) -> None:
    assert columns(run(memory_budget=memory_budget, suppression=suppression)) == columns(run(suppression=suppression))


def test_running_out_of_memory_changes_nothing() -> None:
    class Small(Watched):
        def decode(self, embeddings: Embeddings, view: int, *, points: Tensor, **_: object) -> Decoded:
            if len(points) > 9:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return super().decode(embeddings, view, points=points, labels=torch.ones(len(points), 1))

    assert columns(run(Small())) == columns(run())


def test_a_mask_covers_the_points_that_lie_in_it() -> None:
    """Read at a quarter of the frame's resolution, so points beside an outline may differ."""
    segmenter, settings = Watched(), MaskSettings(points_per_side=10, adaptive_points=True)
    generator = MaskGenerator(segmenter, settings, stability_score_thresh=0.0)
    image = generator.prepare(picture(90, 250))
    window, points = image.windows[0], generator._grids[0] * np.array([[250, 90]])
    seen = SeenWindow(90, 250, 0, window, image.views[0], segmenter.encode(image.views), 0)
    stages = Stages(segmenter.device)
    prompter = Prompter(segmenter, generator.settings, stages)
    covers: list[Tensor] = []

    class Listening(Prompter):
        def candidates(self, seen: SeenWindow, points: np.ndarray, counts: MaskCounts) -> Any:
            for found in prompter.candidates(seen, points, counts):
                covers.extend([] if found.covers is None else [found.covers])
                yield found

    listening = AdaptivePrompter(Listening(segmenter, settings, stages), segmenter, settings, stages)
    found = list(listening.candidates(seen, points, MaskCounts()))
    assert all(part.covers is None for part in found)  # nothing is held longer than a round needs it
    masks = Candidates.concatenate(found).masks[: sum(map(len, covers))]
    pixels = np.stack([rle.decode(runs) for runs in put_into_runs(masks, 0.0, 90, 250)])
    x, y = points.astype(int).T
    expected, covered = pixels[:, y, x], torch.cat(covers).numpy()
    assert 0.05 < expected.mean() < 0.6
    assert (covered == expected).mean() > 0.97
