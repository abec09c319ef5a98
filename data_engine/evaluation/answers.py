"""A model's answers to clicks and boxes, scored against the objects that were meant."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from rlemasklib import RLEMask
from torch import Tensor

from data_engine.errors import DataEngineError
from data_engine.evaluation.clicks import Click, first_click, next_click
from data_engine.evaluation.scores import boundary_iou, iou
from data_engine.masks import rle
from data_engine.sam.predictor import SamPredictor
from data_engine.sam.resize import scale_points

_BYTES_AT_ONCE = 1 << 28  # of full-resolution logits


@dataclass(frozen=True, slots=True)
class Answers:
    """To N prompts: true IoU of the three masks, and of the single mask that is meant for unambiguous prompts."""

    iou: np.ndarray  # Nx3
    predicted: np.ndarray  # Nx3: what the model says of them
    single: np.ndarray  # N
    boundary: np.ndarray  # N: boundary IoU of the mask with the highest predicted IoU
    boundary_single: np.ndarray  # N

    @property
    def chosen(self) -> np.ndarray:
        """N: true IoU of the mask with the highest predicted IoU."""
        return np.take_along_axis(self.iou, self.predicted.argmax(1)[:, None], 1)[:, 0]

    @property
    def oracle(self) -> np.ndarray:
        """N: of the best of the three."""
        return self.iou.max(1)

    @staticmethod
    def concatenate(parts: Sequence[Answers]) -> Answers:
        return Answers(*(np.concatenate([getattr(part, name) for part in parts]) for name in Answers.__slots__))


def click_answers(predictor: SamPredictor, truths: Sequence[RLEMask], counts: Sequence[int]) -> dict[int, Answers]:
    """Clicks on every object of the image that is set, up to the largest of `counts`; answers after each of them.

    As in SAM, the first click is answered with the most promising of three masks and each further one with the single
    mask; the logits of an answer go into the next prompt.
    """
    parts: dict[int, list[Answers]] = {count: [] for count in counts}
    for regions in _chunks(predictor, truths):
        clicks: list[list[Click]] = [[first_click(region)] for region in regions]
        logits: Tensor | None = None
        for count in range(1, max(counts) + 1):
            asked = _Asked.points(predictor, regions.shape[1:], clicks, logits)
            if count in parts:
                parts[count].append(asked.answers(regions))
            if count < max(counts):
                masks, logits = asked.answer_to_go_on_with(first=count == 1)
                for region, mask, before in zip(regions, masks, clicks, strict=True):
                    before.append(next_click(region, mask, before))
    return {count: Answers.concatenate(found) for count, found in parts.items()}


def box_answers(predictor: SamPredictor, truths: Sequence[RLEMask]) -> Answers:
    """The tight box of every object of the image that is set (from its first to its last pixels), answered."""
    found = []
    start = 0
    for regions in _chunks(predictor, truths):
        boxes = np.array([rle.box(runs) for runs in truths[start : start + len(regions)]])
        found.append(_Asked.boxes(predictor, regions.shape[1:], boxes).answers(regions))
        start += len(regions)
    return Answers.concatenate(found)


def _chunks(predictor: SamPredictor, truths: Sequence[RLEMask]) -> Iterator[np.ndarray]:
    """The objects as pixels, KxHxW bool, as many at a time as may be prompted together."""
    segmenter = predictor.segmenter
    height, width = truths[0].shape
    mask_bytes = 3 * 4 * (max(height * width, segmenter.image_size**2) + height * width)
    size = max(1, min(segmenter.prompts_per_chunk, _BYTES_AT_ONCE // mask_bytes))
    for start in range(0, len(truths), size):
        yield np.stack([rle.decode(runs) for runs in truths[start : start + size]])


class _Asked:
    """Prompts put to the model, answered with three masks or with the single one when that is looked at."""

    def __init__(
        self,
        predictor: SamPredictor,
        points: Tensor | None = None,
        labels: Tensor | None = None,
        boxes: Tensor | None = None,
        logits: Tensor | None = None,
    ) -> None:
        self._predictor = predictor
        self._prompt = (points, labels, boxes, logits)
        self._found: dict[bool, tuple[np.ndarray, np.ndarray, Tensor]] = {}

    @classmethod
    def points(
        cls, predictor: SamPredictor, shape: tuple[int, int], clicks: list[list[Click]], logits: Tensor | None
    ) -> _Asked:
        """As many clicks for every object."""
        each = np.array(clicks)
        return cls(
            predictor,
            points=_to_frame(predictor, shape, each[..., :2]),
            labels=torch.as_tensor(each[..., 2], dtype=torch.int),
            logits=logits,
        )

    @classmethod
    def boxes(cls, predictor: SamPredictor, shape: tuple[int, int], boxes: np.ndarray) -> _Asked:
        return cls(predictor, boxes=_to_frame(predictor, shape, boxes.reshape(-1, 2, 2)).reshape(-1, 4))

    def answers(self, regions: np.ndarray) -> Answers:
        masks, predicted, _ = self._masks(three=True)
        single = self._masks(three=False)[0][:, 0]
        chosen = masks[np.arange(len(masks)), predicted.argmax(1)]
        return Answers(
            iou=iou(masks, regions[:, None]),
            predicted=predicted,
            single=iou(single, regions),
            boundary=_boundary_ious(chosen, regions),
            boundary_single=_boundary_ious(single, regions),
        )

    def answer_to_go_on_with(self, *, first: bool) -> tuple[np.ndarray, Tensor]:
        """Masks NxHxW bool and their logits Nx1xhxw."""
        masks, predicted, logits = self._masks(three=first)
        rows, best = np.arange(len(masks)), predicted.argmax(1)
        return masks[rows, best], logits[rows, best][:, None]

    def _masks(self, *, three: bool) -> tuple[np.ndarray, np.ndarray, Tensor]:
        """Masks NxMxHxW bool, predicted IoU NxM, logits NxMxhxw."""
        if three not in self._found:
            masks, predicted, logits = self._predictor.predict_torch(*self._prompt, multimask_output=three)
            if not torch.isfinite(predicted).all():
                raise DataEngineError("the model answers with NaN or infinity; try --set model.precision=reference")
            self._found[three] = masks.cpu().numpy(), predicted.cpu().numpy(), logits
        return self._found[three]


def _to_frame(predictor: SamPredictor, shape: tuple[int, int], points: np.ndarray) -> Tensor:
    return torch.as_tensor(scale_points(points, shape, predictor.segmenter.image_size), dtype=torch.float)


def _boundary_ious(masks: np.ndarray, regions: np.ndarray) -> np.ndarray:
    return np.array([boundary_iou(mask, region) for mask, region in zip(masks, regions, strict=True)])
