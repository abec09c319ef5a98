"""From a labelled image to what a model is trained on: a random view of it, and some of its masks there.

Large-scale jitter (arXiv 2012.07177): the image is scaled at random, then cropped to the input frame, or padded to it.
A view is a function of (seed, image id, epoch) alone, so a run can be repeated with any number of loader threads.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from rlemasklib import RLEMask
from torch import Tensor

from data_engine.masks import rle
from data_engine.sam.resize import resized_shape
from data_engine.train.data.labelled import LabelledImage
from data_engine.train.prompts import shrink
from data_engine.train.supervised.settings import DataSettings

_TRIES = 3  # random views that may show no mask; then the whole image is taken


@dataclass(slots=True)
class Example:
    """An image in the model's input frame, and P of its masks."""

    image_id: str
    pixels: Tensor  # 3xSxS uint8, the image in the top-left corner
    size: tuple[int, int]  # (height, width) of the image in it
    targets: Tensor  # PxRxR bool; R is S for a loss at the size of the input, S/2 or S/4
    seed: int  # of its prompts


@dataclass(frozen=True, slots=True)
class _Cut:
    """Where a view comes from: a box of the image, and the size it gets in the frame."""

    box: tuple[float, float, float, float]  # x0, y0, x1, y1 in pixels of the image
    height: int
    width: int
    mirrored: bool

    def pixels(self, image: np.ndarray) -> np.ndarray:
        picture = Image.fromarray(image).resize((self.width, self.height), Image.Resampling.BILINEAR, box=self.box)
        return self._turned(np.asarray(picture))

    def mask(self, runs: RLEMask) -> np.ndarray | None:
        """height x width bool, None where the mask lies outside of the view."""
        x0, y0, x1, y1 = rle.box(runs)
        left, top, right, bottom = self.box
        if x1 + 1 <= left or x0 >= right or y1 + 1 <= top or y0 >= bottom:
            return None
        whole = Image.fromarray(rle.decode(runs).astype(np.uint8) * 255)
        part = whole.resize((self.width, self.height), Image.Resampling.BILINEAR, box=self.box)
        return self._turned(np.asarray(part) >= 128)

    def _turned(self, array: np.ndarray) -> np.ndarray:
        return array[:, ::-1] if self.mirrored else array


class ViewMaker:
    """frame: side S of the input; mask_side: side R of the targets."""

    def __init__(self, settings: DataSettings, per_image: int, seed: int, frame: int, mask_side: int) -> None:
        self._settings = settings
        self._per_image = per_image
        self._seed = seed
        self._frame = frame
        self._mask_side = mask_side

    def view(self, image: LabelledImage, epoch: int) -> Example | None:
        """epoch: how often its source was gone through before.

        None for an image without a mask that is large enough to be prompted, in whatever view.
        """
        name = zlib.crc32(image.image_id.encode())
        rng = np.random.default_rng([self._seed, name, epoch])
        views = self._settings.views_per_image
        view = np.random.default_rng([self._seed, name, int(rng.integers(views)), 1]) if views else rng
        for attempt in range(_TRIES + 1):
            cut = self._cut(view, *image.image.shape[:2], whole=attempt == _TRIES)
            masks = self._masks(rng, image.masks, cut)
            if masks:
                return self._example(image, cut, masks, int(rng.integers(2**62)))
        return None

    def _cut(self, rng: np.random.Generator, height: int, width: int, *, whole: bool) -> _Cut:
        frame, jitter = self._frame, self._settings.jitter
        mirrored = bool(self._settings.flip and rng.random() < 0.5)
        scale = 1.0 if jitter is None or whole else float(rng.uniform(*jitter))
        full_height, full_width = (max(1, side) for side in resized_shape(height, width, max(1, round(frame * scale))))
        part_height, part_width = min(full_height, frame), min(full_width, frame)
        top, left = (int(rng.integers(spare + 1)) for spare in (full_height - part_height, full_width - part_width))
        down, across = height / full_height, width / full_width
        box = (left * across, top * down, (left + part_width) * across, (top + part_height) * down)
        # Rounding must not carry the box over the edge.
        return _Cut((*box[:2], min(box[2], width), min(box[3], height)), part_height, part_width, mirrored)

    def _masks(self, rng: np.random.Generator, masks: list[RLEMask], cut: _Cut) -> list[np.ndarray]:
        found: list[np.ndarray] = []
        for index in rng.permutation(len(masks)):
            mask = cut.mask(masks[index])
            if mask is None or mask.sum() < self._settings.smallest_mask:
                continue
            small = shrink(mask, self._frame, self._mask_side)
            if small.any():  # thin things vanish at the size of the logits
                found.append(small)
            if len(found) == self._per_image:
                break
        return found

    def _example(self, image: LabelledImage, cut: _Cut, masks: list[np.ndarray], seed: int) -> Example:
        pixels = np.zeros((3, self._frame, self._frame), np.uint8)
        pixels[:, : cut.height, : cut.width] = cut.pixels(image.image).transpose(2, 0, 1)
        targets = torch.from_numpy(np.stack(masks))
        return Example(image.image_id, torch.from_numpy(pixels), (cut.height, cut.width), targets, seed)
