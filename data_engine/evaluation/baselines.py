"""What a click finds without a model: regions of Felzenszwalb and Huttenlocher (2004), and a flood fill by colour.

Each answers a click with three masks, one a setting, as a model does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from rlemasklib import RLEMask

from data_engine.evaluation.optional import optional
from data_engine.evaluation.scores import iou
from data_engine.masks import rle

FELZENSZWALB_SCALES = (100, 300, 1000)
FLOOD_TOLERANCES = (6.0, 12.0, 24.0)  # in CIE Lab


@dataclass(frozen=True, slots=True)
class BaselineAnswers:
    """Of N clicks, one column a setting."""

    iou: np.ndarray  # Nx3
    share: np.ndarray  # Nx3: of the image


def felzenszwalb_answers(pixels: np.ndarray, regions: Sequence[RLEMask], clicks: np.ndarray) -> BaselineAnswers:
    """HxWx3 uint8, N regions, Nx2 (x, y) -> the regions under the clicks at three scales."""
    felzenszwalb = optional("skimage.segmentation").felzenszwalb
    answers = _Answers(len(regions), len(FELZENSZWALB_SCALES))
    for column, scale in enumerate(FELZENSZWALB_SCALES):
        labels = felzenszwalb(pixels, scale=scale, sigma=0.8, min_size=50)
        for row, (x, y) in enumerate(clicks):
            answers.put(row, column, labels == labels[y, x], rle.decode(regions[row]))
    return answers.done()


def flood_answers(pixels: np.ndarray, regions: Sequence[RLEMask], clicks: np.ndarray) -> BaselineAnswers:
    """HxWx3 uint8, N regions, Nx2 (x, y) -> what joins the clicks in about their colour, at three tolerances."""
    lab = optional("skimage.color").rgb2lab(pixels)
    label = optional("scipy.ndimage").label
    answers = _Answers(len(regions), len(FLOOD_TOLERANCES))
    for row, (x, y) in enumerate(clicks):
        region = rle.decode(regions[row])
        distance = np.linalg.norm(lab - lab[y, x], axis=2)
        for column, tolerance in enumerate(FLOOD_TOLERANCES):
            labels, _ = label(distance <= tolerance)
            answers.put(row, column, labels == labels[y, x], region)
    return answers.done()


def chosen_by_size(share: np.ndarray, prior: float) -> np.ndarray:
    """Nx3 shares of the image -> N columns: the mask whose size is nearest to the prior, in logarithms."""
    return np.abs(np.log(np.maximum(share, 1e-9)) - np.log(prior)).argmin(1)


class _Answers:
    def __init__(self, rows: int, columns: int) -> None:
        self._iou = np.zeros((rows, columns))
        self._share = np.zeros((rows, columns))

    def put(self, row: int, column: int, mask: np.ndarray, region: np.ndarray) -> None:
        self._iou[row, column] = iou(mask, region)
        self._share[row, column] = mask.mean()

    def done(self) -> BaselineAnswers:
        return BaselineAnswers(self._iou, self._share)
