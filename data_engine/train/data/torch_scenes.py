"""Procedural scenes in batches, on a CPU or a GPU: things with parts and details before a background, masks exact.

Things are painted back to front. Whatever covers at least half of a pixel owns it at all three levels (whole, part,
detail), so visible masks are exact and nested by construction, and a click on a detail has up to three right answers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from data_engine.train.data.scene_canvas import Canvas, light, photographed
from data_engine.train.data.scene_shapes import Frame, Outlines, Textures, chance, half_planes, uniform

_PARTS = 3
_MOST_CELLS = 6  # a side of a lattice of details: windows, tiles, buttons
_FIRST_DETAIL = 1 + _PARTS
_IDS = _FIRST_DETAIL + _PARTS * _MOST_CELLS**2  # of a thing: itself, its parts, its details by part
_PLANES = 3
_TEXTURES = 24


@dataclass(frozen=True, slots=True)
class SceneBatch:
    """B scenes of one size, on the generator's device."""

    images: Tensor  # Bx3xHxW uint8
    levels: Tensor  # Bx3xHxW int32: numbers of whole, part, detail; each region lies within one of the level before


@dataclass(frozen=True, slots=True)
class _Thing:
    """B things: where their pixels are, in their own coordinates, and how much of each pixel they cover. All BxHxW."""

    u: Tensor
    v: Tensor
    coverage: Tensor
    parts: Tensor  # int: number of the part, 0 throughout for things of one piece
    colours: Tensor  # Bx3
    first_id: int


class SceneGenerator:
    """Draws batches of scenes. The same seed gives the same scenes on every device, but for the sensor's noise."""

    def __init__(self, device: torch.device | str = "cpu", most_things: int = 24) -> None:
        self.device = torch.device(device)
        self.most_things = most_things

    @torch.no_grad()
    def draw(self, count: int, height: int, width: int, seed: int) -> SceneBatch:
        """`count` scenes of height x width pixels, those with many things first."""
        generator = torch.Generator().manual_seed(seed)
        frame = Frame.of(height, width, self.device)
        canvas = Canvas.blank(generator, count, frame, Textures(generator, _TEXTURES, self.device))
        _background(canvas)
        dense = chance(generator, count, 0.4)
        share = torch.rand(count, generator=generator)
        most = self.most_things
        things = torch.where(dense, most / 4 + share * most * 3 / 4, 1 + share * most / 3).long()
        order = things.argsort(descending=True)  # so that who gets one more thing is always the first few
        things, dense = things[order], dense[order]
        for index in range(int(things[0])):
            some = canvas.first(int((things > index).sum()))
            thing = _thing(some, dense[: len(some)], (_PLANES + 1 + index) * _IDS)
            _details(some, thing)
        light(canvas)
        return SceneBatch(photographed(generator, canvas.pixels), canvas.levels)


def _background(canvas: Canvas) -> None:
    everywhere = torch.ones_like(canvas.pixels[:, 0])
    canvas.paint(everywhere, canvas.surface(canvas.colours()), (1, 1, 1))
    planes = torch.randint(0, _PLANES + 1, (len(canvas),), generator=canvas.generator)
    for index in range(int(planes.max())):
        coverage = half_planes(canvas.generator, len(canvas), canvas.frame) * canvas.placed(index < planes)
        canvas.paint(coverage, canvas.surface(canvas.colours()), ((index + 1) * _IDS,) * 3)


def _thing(canvas: Canvas, dense: Tensor, first_id: int) -> _Thing:
    """Paints one more thing into every scene: its shadow, then its body in parts."""
    generator, count = canvas.generator, len(canvas)
    height, width = canvas.pixels.shape[-2:]
    low = torch.where(dense, math.log(0.05), math.log(0.1))
    high = torch.where(dense, math.log(0.35), math.log(0.9))
    size = max(height, width) * torch.exp(low + (high - low) * torch.rand(count, generator=generator))
    centres = torch.rand(count, 2, generator=generator) * torch.tensor([width, height])
    outlines = Outlines.draw(generator, centres, size, canvas.pixels.device)
    u, v = outlines.coordinates(canvas.frame)
    _shadow(canvas, outlines, u, v)
    softness = torch.where(chance(generator, count, 0.25), uniform(generator, count, 1, 4), torch.ones(()))
    coverage = outlines.coverage(u, v, canvas.placed(softness))

    parts = _part_numbers(canvas, u, v)
    colours = canvas.colours()
    shown = colours[:, :, None, None]
    for number in range(1, _PARTS):
        shown = torch.where((parts == number)[:, None], canvas.near_or_new(colours)[:, :, None, None], shown)
    surface = (shown + canvas.texture()) * _relief(canvas, u, v)[:, None]
    divided = (parts > 0).flatten(1).any(1)[:, None, None]
    ids = torch.where(divided, first_id + 1 + parts, first_id).int()
    canvas.paint(coverage, surface, (first_id, ids, ids))
    return _Thing(u, v, coverage, torch.where(divided, parts, -1), colours, first_id)


def _part_numbers(canvas: Canvas, u: Tensor, v: Tensor) -> Tensor:
    """BxHxW: which of up to three parts a pixel of a thing belongs to; 0 throughout for things of one piece."""
    generator, count = canvas.generator, len(canvas)
    pieces = torch.tensor([1, 1, 2, 3])[torch.randint(4, (count,), generator=generator)]
    seeds = (1.4 * torch.rand(_PARTS, 2, count, generator=generator) - 0.7).unbind()
    weights = uniform(generator, count * _PARTS, -0.15, 0.15).view(_PARTS, count)
    weights[torch.arange(_PARTS)[:, None] >= pieces] = torch.inf
    distances = [
        torch.hypot(u - canvas.placed(x), v - canvas.placed(y)) + canvas.placed(weight)
        for (x, y), weight in zip(seeds, weights, strict=True)
    ]
    return torch.stack(distances).argmin(0)


def _details(canvas: Canvas, thing: _Thing) -> None:
    """One detail on a thing, or a lattice of equal ones; on half of the things."""
    generator, count = canvas.generator, len(canvas)
    seen = canvas.placed(chance(generator, count, 0.5))
    lattice = chance(generator, count, 0.4)
    cells = torch.where(lattice, torch.randint(2, _MOST_CELLS + 1, (count,), generator=generator), 1)
    n = canvas.placed(cells)
    column, row = ((c / 2 + 0.5) * n for c in (thing.u, thing.v))
    u, v = (torch.where(n > 1, (c % 1) * 2 - 1, own) for c, own in ((column, thing.u), (row, thing.v)))
    reach = torch.where(lattice, 0.0, 0.6)[:, None]
    centres = reach * (2 * torch.rand(count, 2, generator=generator) - 1)
    size = torch.where(lattice, uniform(generator, count, 0.7, 1.6), uniform(generator, count, 0.3, 1.2))
    stamp = Outlines.draw(generator, centres, size, canvas.pixels.device, bent=0.3)
    edge = 0.04  # of the cell: how soft a detail's outline is
    coverage = stamp.coverage(*stamp.coordinates(Frame(u, v)), edge) * thing.coverage * seen
    coverage *= ((thing.u.abs() < 1) & (thing.v.abs() < 1)) | (n == 1)
    cell = row.floor().clamp(0, _MOST_CELLS - 1) * _MOST_CELLS + column.floor().clamp(0, _MOST_CELLS - 1)
    number = torch.where(n > 1, cell.int(), 0) * _PARTS + thing.parts.clamp_min(0)
    part = thing.first_id + 1 + thing.parts  # parts are -1 for things of one piece: their part is the thing
    surface = canvas.surface(canvas.near_or_new(thing.colours))
    canvas.paint(coverage, surface, (thing.first_id, part.int(), (thing.first_id + _FIRST_DETAIL + number).int()))


def _shadow(canvas: Canvas, outlines: Outlines, u: Tensor, v: Tensor) -> None:
    generator, count = canvas.generator, len(canvas)
    strength = uniform(generator, count, 0.1, 0.6) * chance(generator, count, 0.5)
    shift_u, shift_v = (canvas.placed(uniform(generator, count, -0.25, 0.25)) for _ in range(2))
    softness = canvas.placed(uniform(generator, count, 2, 20))
    canvas.darken(outlines.coverage(u - shift_u, v - shift_v, softness) * canvas.placed(strength))


def _relief(canvas: Canvas, u: Tensor, v: Tensor) -> Tensor:
    """BxHxW: brightness of a round body that is lit from one side."""
    generator, count = canvas.generator, len(canvas)
    angle = uniform(generator, count, 0, 2 * torch.pi)
    hardness = uniform(generator, count, 0, 0.5) * chance(generator, count, 0.7)
    slope = u * canvas.placed(angle.cos()) + v * canvas.placed(angle.sin())
    return (1 + canvas.placed(hardness) * slope).clamp(0.3, 1.8)
