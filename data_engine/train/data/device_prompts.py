"""Prompts for a batch of scenes and the masks that answer them, drawn on the scenes' device.

As `data_engine.train.prompts` does image by image: a click has up to three valid targets, coarsest first; a box one.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from data_engine.train.prompts import SAME, TARGETS

_SMALLEST_CELLS = 10  # of the mask: a region of fewer cannot be drawn, and is not worth a prompt
_CANDIDATES = 3  # pixels of which a click takes the one deepest in its region
_DEPTHS = (5, 17, 49)  # sides of the windows in which boundaries are counted: how deep a pixel lies


@dataclass(frozen=True, slots=True)
class PromptBatch:
    """For each of B scenes C clicks, then K boxes, in pixels of the input frame. P = C + K."""

    clicks: Tensor  # BxCx2 float32 (x, y)
    boxes: Tensor  # BxKx4 float32 (x0, y0, x1, y1)
    targets: Tensor  # BxPx3x(4G)x(4G) bool
    valid: Tensor  # BxPx3 bool


@torch.no_grad()
def draw_prompts(
    levels: Tensor, *, clicks: int, boxes: int, frame: int, mask_side: int, grid_share: float, seed: int
) -> PromptBatch:
    """levels Bx3xHxW in the top-left of a frame x frame input. Scenes without a region to prompt have no valid target.

    `grid_share` of the clicks are anywhere, as those of a grid are; the others in regions chosen uniformly.
    """
    generator = torch.Generator(levels.device).manual_seed(seed)
    sampler = _Sampler(levels, _SMALLEST_CELLS * (frame // mask_side) ** 2, generator)
    anywhere = round(clicks * grid_share)
    at = torch.cat([sampler.anywhere(anywhere), sampler.in_regions(clicks - anywhere, deep=True)[0]], 1)
    numbers = sampler.numbers(at)
    clicked = levels[:, None] == numbers[..., None, None]
    boxed, extents = sampler.boxes(boxes)
    width = levels.shape[-1]
    jitter = torch.rand(*at.shape, 2, generator=generator, device=levels.device) - 0.5
    targets = torch.cat([shrunk(clicked, frame, mask_side), _alone(shrunk(boxed[:, :, None], frame, mask_side))], 1)
    valid_boxes = _alone(boxed.flatten(2).any(2, keepdim=True)[..., None, None])[..., 0, 0]
    return PromptBatch(
        torch.stack([at % width, at // width], -1) + jitter,
        extents,
        targets,
        torch.cat([sampler.distinct(at, numbers), valid_boxes], 1),
    )


class _Sampler:
    def __init__(self, levels: Tensor, smallest: int, generator: torch.Generator) -> None:
        self.levels = levels
        self.smallest = smallest
        self.generator = generator
        flat = levels.flatten(2).long()
        counts = torch.zeros(*flat.shape[:2], int(flat.max()) + 1, device=levels.device)
        self.areas = counts.scatter_add_(2, flat, torch.ones_like(flat, dtype=counts.dtype)).gather(2, flat)  # Bx3xN
        self.large = (self.areas >= smallest) & (flat > 0)
        self.flat = flat
        edge = torch.zeros_like(levels, dtype=torch.float32)
        edge[..., 1:] += levels[..., 1:] != levels[..., :-1]
        edge[..., 1:, :] += levels[..., 1:, :] != levels[..., :-1, :]
        self.near_edges = torch.stack([_box_mean(edge, side) for side in _DEPTHS]).sum(0).flatten(2)

    def anywhere(self, count: int) -> Tensor:
        """Bxcount pixels that lie in a region which is large enough."""
        return self._drawn(self.large.any(1).float(), count)

    def in_regions(self, count: int, *, deep: bool) -> tuple[Tensor, Tensor]:
        """(pixels, levels), Bxcount each: regions of a random level chosen uniformly, whatever their size."""
        device = self.levels.device
        level = torch.randint(TARGETS, (count,), generator=self.generator, device=device)
        found = torch.zeros(len(self.levels), count, dtype=torch.long, device=device)
        for number in range(TARGETS):
            mine = (level == number).nonzero()[:, 0]
            if not len(mine):
                continue
            weights = self.large[:, number] / self.areas[:, number]
            pixels = self._drawn(weights, len(mine))
            if deep:
                pixels = self._deepest(pixels, number)
            found[:, mine] = pixels
        return found, level.expand(len(found), -1)

    def numbers(self, at: Tensor) -> Tensor:
        """BxC pixels -> BxCx3 numbers of the regions that they are in."""
        return self.flat.gather(2, at[:, None].expand(-1, TARGETS, -1)).mT

    def distinct(self, at: Tensor, numbers: Tensor) -> Tensor:
        """BxCx3: which targets of a click to keep: known, large enough, and not the same as a coarser one."""
        areas = self.areas.gather(2, at[:, None].expand(-1, TARGETS, -1)).mT
        keep = (numbers > 0) & (areas >= self.smallest)
        for finer in range(1, TARGETS):
            for coarser in range(finer):
                keep[..., finer] &= ~(keep[..., coarser] & (areas[..., finer] >= SAME * areas[..., coarser]))
        return keep

    def boxes(self, count: int) -> tuple[Tensor, Tensor]:
        """BxKxHxW masks of regions, BxKx4 boxes around them whose corners are off by up to a tenth."""
        height, width = self.levels.shape[-2:]
        at, level = self.in_regions(count, deep=False)
        number = self.numbers(at).gather(2, level[..., None])[..., 0]
        planes = self.levels[torch.arange(len(at), device=at.device)[:, None], level]
        masks = (planes == number[..., None, None]) & (number > 0)[..., None, None]
        edges = []
        for along, length in ((2, width), (3, height)):
            hit = masks.any(along).to(torch.uint8)  # BxKxlength
            edges.append((hit.argmax(-1), length - 1 - hit.flip(-1).argmax(-1)))
        (x0, x1), (y0, y1) = edges
        extents = torch.stack([x0, y0, x1, y1], -1).float()
        sides = (extents[..., 2:] - extents[..., :2]).repeat(1, 1, 2)
        noise = 0.05 * torch.randn(extents.shape, generator=self.generator, device=at.device)
        loose = torch.rand(*extents.shape[:2], 1, generator=self.generator, device=at.device) < 0.5
        extents = extents + noise.clamp(-0.1, 0.1) * loose * sides
        limits = torch.tensor([width - 1, height - 1] * 2, device=at.device)
        return masks, torch.minimum(extents.clamp_min(0), limits)

    def _drawn(self, weights: Tensor, count: int) -> Tensor:
        """Bxcount pixels by weight; anywhere at all where every weight of a scene is zero."""
        usable = torch.where(weights.sum(1, keepdim=True) > 0, weights, torch.ones_like(weights))
        if not count:
            return torch.zeros(len(weights), 0, dtype=torch.long, device=weights.device)
        return torch.multinomial(usable, count, replacement=True, generator=self.generator)

    def _deepest(self, pixels: Tensor, level: int) -> Tensor:
        """Of each pixel and some around it in its region, the one that is farthest from boundaries."""
        height, width = self.levels.shape[-2:]
        number = self.flat[:, level].gather(1, pixels)
        reach = self.areas[:, level].gather(1, pixels).sqrt()
        best, depth = pixels, self.near_edges[:, level].gather(1, pixels)
        for _ in range(_CANDIDATES):
            steps = 2 * torch.rand(2, *pixels.shape, generator=self.generator, device=pixels.device) - 1
            x = (pixels % width + steps[0] * reach).long().clamp(0, width - 1)
            y = (pixels // width + steps[1] * reach).long().clamp(0, height - 1)
            other = y * width + x
            shallow = self.near_edges[:, level].gather(1, other)
            better = (self.flat[:, level].gather(1, other) == number) & (shallow < depth)
            best, depth = torch.where(better, other, best), torch.where(better, shallow, depth)
        return best


def _box_mean(values: Tensor, side: int) -> Tensor:
    """The mean over the square of an odd side around each pixel."""
    rows = F.avg_pool2d(values, (1, side), 1, (0, side // 2))
    return F.avg_pool2d(rows, (side, 1), 1, (side // 2, 0))


def shrunk(masks: Tensor, frame: int, side: int) -> Tensor:
    """...xHxW bool in the top-left of the frame -> ...xsidexside bool: set where at least half of a cell is."""
    factor = frame // side
    height, width = masks.shape[-2:]
    padded = F.pad(masks.flatten(0, -3).half(), (0, frame - width, 0, frame - height))
    return (F.avg_pool2d(padded, factor) >= 0.5).unflatten(0, masks.shape[:-2])


def _alone(masks: Tensor) -> Tensor:
    """BxKx1xhxw -> BxKx3xhxw, the others empty."""
    return F.pad(masks, (0, 0, 0, 0, 0, TARGETS - 1))
