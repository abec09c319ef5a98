"""Random views of photographs with their region hierarchies, drawn in batches on a CPU or a GPU."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from data_engine.train.data.scene_canvas import photographed
from data_engine.train.data.scene_shapes import chance, uniform
from data_engine.train.data.torch_scenes import SceneBatch

if TYPE_CHECKING:
    from data_engine.train.photographs import Photograph


class PhotographViews:
    """Photographs on the device. Each has `hierarchies` ways of being cut into nested regions; a view takes one."""

    def __init__(
        self, photographs: list[Photograph], device: torch.device | str, *, hierarchies: int = 6, seed: int = 0
    ) -> None:
        rng = np.random.default_rng(seed)
        side = max(max(photograph.pixels.shape[:2]) for photograph in photographs)
        pixels = np.zeros((len(photographs), side, side, 3), np.uint8)
        levels = np.zeros((len(photographs), hierarchies, side, side, 3), np.int32)
        for index, photograph in enumerate(photographs):
            height, width = photograph.pixels.shape[:2]
            pixels[index, :height, :width] = photograph.pixels
            for cut in range(hierarchies):
                levels[index, cut, :height, :width] = np.moveaxis(_levels(rng, photograph), 0, -1)
        self.device = torch.device(device)
        self._pixels = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous().to(self.device)
        self._levels = torch.from_numpy(levels).to(self.device)
        self._sizes = torch.tensor([photograph.pixels.shape[:2] for photograph in photographs]).float()

    @torch.no_grad()
    def draw(self, count: int, height: int, width: int, seed: int) -> SceneBatch:
        """`count` views of height x width pixels: from a third of a photograph's side to all of it, half mirrored."""
        generator = torch.Generator().manual_seed(seed)
        which = torch.randint(len(self._sizes), (count,), generator=generator)
        cut = torch.randint(self._levels.shape[1], (count,), generator=generator)
        left, top, right, bottom = self._boxes(generator, self._sizes[which], height / width)
        mirrored = chance(generator, count, 0.5)
        left, right = torch.where(mirrored, right, left), torch.where(mirrored, left, right)
        x = (left[:, None] + (torch.arange(width) + 0.5) / width * (right - left)[:, None]).to(self.device)
        y = (top[:, None] + (torch.arange(height) + 0.5) / height * (bottom - top)[:, None]).to(self.device)
        side = self._pixels.shape[-1]
        which, cut = which.to(self.device), cut.to(self.device)
        rows, columns = y.long().clamp(0, side - 1), x.long().clamp(0, side - 1)
        levels = self._levels[which[:, None, None], cut[:, None, None], rows[:, :, None], columns[:, None, :]]
        grid = torch.stack(torch.broadcast_tensors(x[:, None, :], y[:, :, None]), -1) / side * 2 - 1
        pixels = F.grid_sample(self._pixels[which].float(), grid, padding_mode="border", align_corners=False)
        return SceneBatch(photographed(generator, pixels, strength=0.5), levels.permute(0, 3, 1, 2).contiguous())

    def _boxes(self, generator: torch.Generator, sizes: Tensor, aspect: float) -> tuple[Tensor, ...]:
        """(left, top, right, bottom) of parts of photographs, of nearly the aspect height / width; B each."""
        count = len(sizes)
        ratio = aspect * torch.exp(0.08 * torch.randn(count, generator=generator))
        height = torch.minimum(sizes[:, 0], sizes[:, 1] * ratio)
        part = torch.where(chance(generator, count, 0.25), torch.ones(()), uniform(generator, count, 0.35, 1.0))
        height = height * part
        width = torch.minimum(height / ratio, sizes[:, 1])
        top = torch.rand(count, generator=generator) * (sizes[:, 0] - height)
        left = torch.rand(count, generator=generator) * (sizes[:, 1] - width)
        return left, top, left + width, top + height


def _levels(rng: np.random.Generator, photograph: Photograph) -> np.ndarray:
    """3xHxW nested region numbers from 1; where an outlined object is, it is the whole."""
    coarse = int(np.exp(rng.uniform(np.log(6), np.log(20))))
    middle = int(coarse * rng.uniform(1.8, 3.5))
    levels = photograph.tree.levels((coarse, middle, int(middle * rng.uniform(1.8, 3.5))))
    inside = photograph.objects > 0
    own = (1 + photograph.objects) * (int(levels.max()) + 1)  # objects cut regions, so that the levels stay nested
    levels = levels + np.where(inside, own, 0)
    levels[0] = np.where(inside, own, levels[0])
    return levels.astype(np.int32)
