"""Adaptive prompting: a coarse grid first, and between its points only where its masks do not agree.

A mask agrees with another of a different prompt when the two would count as duplicates: on the points of the grid they
overlap by more than the suppression allows, and their areas are about the same. A point is explained, and left out,
when accepted masks cover it and each of them agrees with another: to look again would most likely give them again. A
place that gave nothing, or something that was seen only once, is looked at with every point.

What is lost are things between the points of the coarse grid that lie inside of something large.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from data_engine.masks.candidates import Candidates
from data_engine.masks.image_masks import MaskCounts
from data_engine.masks.prompting import Prompter, SeenWindow
from data_engine.masks.settings import MaskSettings
from data_engine.masks.stages import Stages
from data_engine.sam.resize import scale_points
from data_engine.sam.segmenter import Segmenter

_PAIRS_AT_ONCE = 2**24  # of masks, in float32


class AdaptivePrompter:
    """Prompts the points of a window in rounds. Takes the place of `Prompter`; rounds do not depend on its chunks."""

    def __init__(self, prompter: Prompter, segmenter: Segmenter, settings: MaskSettings, stages: Stages) -> None:
        self._prompter = prompter
        self._segmenter = segmenter
        self._step = settings.adaptive_step
        self._threshold = settings.box_nms_thresh
        self._stages = stages

    def candidates(self, seen: SeenWindow, points: np.ndarray, counts: MaskCounts) -> Iterator[Candidates]:
        """As `Prompter.candidates`, for the points of a square grid, row by row. Yields them round by round."""
        grid = torch.from_numpy(_cells(points, seen, self._segmenter)).to(self._segmenter.device)
        asked = replace(seen, grid=grid)
        *rounds, last = point_rounds(round(len(points) ** 0.5), self._step)
        covers: list[Tensor] = []
        areas: list[np.ndarray] = []
        prompts: list[np.ndarray] = []
        explained = np.zeros(len(points), bool)
        for chosen in rounds:
            for found in self._prompter.candidates(asked, points[chosen[~explained[chosen]]], counts):
                assert found.covers is not None
                covers.append(found.covers)
                areas.append(found.area)
                prompts.append(found.points)
                found.covers = None
                yield found
            with self._stages.measure("suppress"):
                # A prompt is its point, so equal points are one prompt.
                numbers = np.unique(np.concatenate(prompts), axis=0, return_inverse=True)[1].ravel()
                known = torch.cat(covers), np.concatenate(areas), numbers
                explained = explained_points(*known, self._threshold).cpu().numpy()
        yield from self._prompter.candidates(seen, points[last[~explained[last]]], counts)


def point_rounds(side: int, step: int) -> list[np.ndarray]:
    """Indices into a grid of side x side points, row by row: every step-th row and column, about the middle; then of
    every half as many-th those that are new; and so on to all. Each in the grid's order; step is a power of two."""
    first = ((side - 1) % step) // 2
    distance = np.arange(side) - first
    new = np.ones((side, side), bool)
    rounds = []
    while step >= 1:
        hit = distance % step == 0
        chosen = new & hit[:, None] & hit
        rounds.append(np.flatnonzero(chosen))
        new &= ~chosen
        step //= 2
    return rounds


def explained_points(covers: Tensor, areas: np.ndarray, prompts: np.ndarray, iou_threshold: float) -> Tensor:
    """Which points of a grid need no further prompt: P bool, on the device of `covers`.

    Of N accepted masks: covers NxP bool, the points that each covers; areas N pixels; prompts N, a number that masks of
    the same prompt share.
    """
    agreeing = _agreeing(covers, areas, prompts, iou_threshold)[:, None]
    return (covers & agreeing).any(0) & ~(covers & ~agreeing).any(0)


def _agreeing(covers: Tensor, areas: np.ndarray, prompts: np.ndarray, iou_threshold: float) -> Tensor:
    """Which masks have a duplicate of another prompt: N bool. Sums of zeros and ones: exact in any order."""
    points = covers.float()
    size = points.sum(1)
    area = torch.from_numpy(areas.astype(np.float32)).to(covers.device)
    prompt = torch.from_numpy(prompts).to(covers.device)
    found = []
    for rows in torch.arange(len(covers), device=covers.device).split(max(1, _PAIRS_AT_ONCE // max(1, len(covers)))):
        both = points[rows] @ points.T
        duplicate = both > iou_threshold * (size[rows, None] + size - both)
        duplicate &= torch.minimum(area[rows, None], area) > iou_threshold * torch.maximum(area[rows, None], area)
        found.append((duplicate & (prompt[rows, None] != prompt)).any(1))
    return torch.cat(found) if found else covers.new_zeros(0)


def _cells(points: np.ndarray, seen: SeenWindow, segmenter: Segmenter) -> np.ndarray:
    """The (row, column) of the logits in which each point (Px2, pixels of the window) lies: 2xP int64."""
    frame = scale_points(points, seen.window.shape, segmenter.image_size)
    cells = (frame * (segmenter.logits_size / segmenter.image_size)).astype(np.int64)
    return np.ascontiguousarray(cells.clip(0, segmenter.logits_size - 1)[:, ::-1].T)
