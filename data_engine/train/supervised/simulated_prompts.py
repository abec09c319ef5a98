"""The simulated person of SAM's training (arXiv 2304.02643, section A): a first point or box, then corrections.

Everything random comes from a generator on the CPU, so that prompts do not depend on the device.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from data_engine.sam.prompt_encoder import BACKGROUND, FOREGROUND
from data_engine.train.supervised.settings import PromptSettings


@dataclass(slots=True)
class Prompts:
    """Of P masks, the boxes first. Coordinates are pixels of the input frame."""

    boxes: Tensor  # Bx4: of the first B masks, B <= P
    points: Tensor  # PxKx2; the first column is unused for masks with a box
    labels: Tensor  # PxK

    def with_points(self, points: Tensor, labels: Tensor) -> Prompts:
        """One more point, Px2 with labels P, for each."""
        return Prompts(
            self.boxes, torch.cat([self.points, points[:, None]], 1), torch.cat([self.labels, labels[:, None]], 1)
        )


def first_prompts(targets: Tensor, frame: int, settings: PromptSettings, generator: torch.Generator) -> Prompts:
    """targets PxRxR bool, none empty -> for the first of them a noised box, for the others a point inside."""
    wanted = torch.rand(len(targets), generator=generator) < settings.box_share
    count = int(wanted.sum())
    boxes = noised_boxes(targets[:count], frame, settings, generator)
    points, inside = random_points(targets, frame, generator)
    assert bool(inside.all())
    labels = torch.full((len(targets), 1), FOREGROUND, device=targets.device)
    return Prompts(boxes, points[:, None], labels)


def noised_boxes(masks: Tensor, frame: int, settings: PromptSettings, generator: torch.Generator) -> Tensor:
    """BxRxR bool -> Bx4 tight boxes, from the first to the last pixels, each side moved at random."""
    side = masks.shape[-1]
    stride = frame / side
    positions = torch.arange(side, device=masks.device)
    found = []
    for hit in (masks.any(1), masks.any(2)):  # columns, rows
        low = torch.where(hit, positions, side).amin(1) * stride
        high = (torch.where(hit, positions, -1).amax(1) + 1) * stride - 1
        found.append((low, high))
    (x0, x1), (y0, y1) = found
    boxes = torch.stack([x0, y0, x1, y1], 1)
    sides = (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)
    noise = torch.randn(len(masks), 4, generator=generator).to(boxes.device) * settings.box_noise * sides
    limit = settings.box_noise_max
    return (boxes + noise.clamp(-limit, limit)).clamp(0, frame - 1)


def correcting_points(
    answers: Tensor, targets: Tensor, frame: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """answers and targets PxRxR bool -> Px2 points where they differ, P labels: what a person would click next.

    Foreground where the answer misses a part, background where it has too much. A perfect answer gets a point inside.
    """
    wrong = answers ^ targets
    perfect = ~wrong.flatten(1).any(1)
    points, inside = random_points(torch.where(perfect[:, None, None], targets, wrong), frame, generator, targets)
    return points, torch.where(inside, FOREGROUND, BACKGROUND)


def random_points(
    regions: Tensor, frame: int, generator: torch.Generator, within: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """regions PxRxR bool, none empty -> a uniformly random point of each, Px2 (x, y); P bool: it is in `within` too."""
    side = regions.shape[-1]
    counted = regions.flatten(1).cumsum(1, dtype=torch.int32)
    total = counted[:, -1:]
    drawn = torch.rand(len(regions), 1, generator=generator, dtype=torch.float64).to(regions.device)
    rank = (drawn * total).floor().to(torch.int32).clamp(max=total - 1) + 1
    at = torch.searchsorted(counted, rank)
    inside = (regions if within is None else within).flatten(1).gather(1, at)[:, 0]
    stride = frame / side
    offset = torch.rand(len(regions), 2, generator=generator).to(regions.device) if stride > 1 else 0.5
    points = (torch.cat([at % side, at // side], 1) + offset) * stride - 0.5
    return points.float(), inside
