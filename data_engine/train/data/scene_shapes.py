"""Outlines and surfaces of procedural things for a whole batch at once: functions of pixel coordinates, on any device.

A thing lives in coordinates of its own: (0, 0) is its middle, its outline is near 1. All parameters are drawn on the
CPU, so that the same seed gives the same masks on every device.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

_HARMONICS = 6


def uniform(generator: torch.Generator, count: int, low: float, high: float) -> Tensor:
    """count float32 in [low, high), on the CPU."""
    return low + (high - low) * torch.rand(count, generator=generator)


def chance(generator: torch.Generator, count: int, share: float) -> Tensor:
    """count bool on the CPU, true in `share` of the cases."""
    return torch.rand(count, generator=generator) < share


def sent(values: Tensor, device: torch.device) -> Tensor:
    """A small tensor of the CPU on the device, without waiting for what the device is doing."""
    return values.to(device, non_blocking=True)


@dataclass(frozen=True, slots=True)
class Frame:
    """Pixel coordinates of a picture."""

    x: Tensor  # 1xHxW, middle of a pixel, in pixels
    y: Tensor

    @classmethod
    def of(cls, height: int, width: int, device: torch.device) -> Frame:
        rows = torch.arange(height, device=device, dtype=torch.float32) + 0.5
        columns = torch.arange(width, device=device, dtype=torch.float32) + 0.5
        y, x = torch.meshgrid(rows, columns, indexing="ij")
        return cls(x[None], y[None])


@dataclass(frozen=True, slots=True)
class Outlines:
    """B closed outlines: superellipses, bent by harmonics. Each field is Bx1x1, or BxNx1x1 for the harmonics."""

    centre_x: Tensor
    centre_y: Tensor
    half_width: Tensor  # pixels
    half_height: Tensor
    cosine: Tensor  # of the angle
    sine: Tensor
    power: Tensor  # 2: an ellipse; 8: a box; 1: a rhombus
    waves: Tensor  # amplitude of each harmonic
    phases: Tensor

    @classmethod
    def draw(
        cls, generator: torch.Generator, centres: Tensor, size: Tensor, device: torch.device, bent: float = 0.6
    ) -> Outlines:
        """centres Bx2 (x, y) and size B in pixels, on the CPU. `bent` is the share of outlines that are not regular."""
        count = len(size)
        aspect = torch.exp(uniform(generator, count, -0.8, 0.8))
        angle = uniform(generator, count, 0, 2 * torch.pi)
        upright = chance(generator, count, 0.4)
        angle = torch.where(upright, torch.zeros(()), angle)
        power = torch.exp(uniform(generator, count, 0.0, 2.3))
        power = torch.where(chance(generator, count, 0.4), torch.full((), 2.0), power)
        orders = torch.arange(2, 2 + _HARMONICS)
        waves = 0.35 * torch.randn(count, _HARMONICS, generator=generator) / orders
        waves = waves * chance(generator, count, bent)[:, None]
        phases = 2 * torch.pi * torch.rand(count, _HARMONICS, generator=generator)

        def placed(values: Tensor) -> Tensor:
            return sent(values, device)[..., None, None]

        return cls(
            placed(centres[:, 0]),
            placed(centres[:, 1]),
            placed(size / 2 * aspect.sqrt()),
            placed(size / 2 / aspect.sqrt()),
            placed(angle.cos()),
            placed(angle.sin()),
            placed(power),
            placed(waves),
            placed(phases),
        )

    def coordinates(self, frame: Frame) -> tuple[Tensor, Tensor]:
        """BxHxW each: (u, v) of every pixel in the thing's own coordinates."""
        dx, dy = frame.x - self.centre_x, frame.y - self.centre_y
        u = (dx * self.cosine + dy * self.sine) / self.half_width
        v = (dy * self.cosine - dx * self.sine) / self.half_height
        return u, v

    def coverage(self, u: Tensor, v: Tensor, softness: Tensor | float = 1.0) -> Tensor:
        """BxHxW in 0..1: one inside, falling to zero over about `softness` pixels, 0.5 on the outline."""
        norm = (u.abs().clamp_min(1e-4) ** self.power).add_(v.abs().clamp_min(1e-4) ** self.power) ** (1 / self.power)
        inverse = torch.rsqrt(u * u + v * v + 1e-8)
        first_cosine, first_sine = u * inverse, v * inverse
        cosine, sine = first_cosine, first_sine  # of n times the angle, by the addition theorems
        radius = torch.ones_like(norm)
        for n in range(_HARMONICS):
            cosine, sine = (
                cosine * first_cosine - sine * first_sine,
                sine * first_cosine + cosine * first_sine,
            )
            wave, phase = self.waves[:, n], self.phases[:, n]
            radius += wave * phase.cos() * cosine - wave * phase.sin() * sine
        scale = torch.minimum(self.half_width, self.half_height)
        return ((radius.clamp_min(0.2) - norm) * scale / softness + 0.5).clamp(0, 1)


def half_planes(generator: torch.Generator, count: int, frame: Frame, level: float = 0.6) -> Tensor:
    """BxHxW in 0..1: one side of a line through the picture; `level` of the lines are nearly horizontal."""
    height, width = frame.x.shape[-2:]
    angle = uniform(generator, count, 0, 2 * torch.pi)
    angle = torch.where(
        chance(generator, count, level), torch.pi / 2 + 0.1 * torch.randn(count, generator=generator), angle
    )
    offset = uniform(generator, count, -0.3, 0.3) * max(height, width)
    wave = uniform(generator, count, 0, 0.04) * height * chance(generator, count, 0.5)
    length = uniform(generator, count, 0.05, 0.5) * width
    device = frame.x.device
    cosine, sine, offset, wave, length = (
        sent(value, device)[:, None, None] for value in (angle.cos(), angle.sin(), offset, wave, length)
    )
    x, y = frame.x - width / 2, frame.y - height / 2
    along = y * cosine - x * sine
    bend = wave * (torch.sin(along / length * 6.28) + 0.5 * torch.sin(along / length * 15.1 + 1))
    return (x * cosine + y * sine - offset + bend + 0.5).clamp(0, 1)


class Textures:
    """Fields of zero mean and deviation one that repeat without a seam, from rough to smooth, and some gratings."""

    def __init__(self, generator: torch.Generator, count: int, device: torch.device, side: int = 128) -> None:
        frequency = torch.fft.fftfreq(side)
        radius = (frequency[:, None] ** 2 + frequency[None, :] ** 2).sqrt().clamp_min(1 / side)
        slope = uniform(generator, count, 0.0, 2.2)[:, None, None]
        white = torch.fft.fft2(torch.randn(count, side, side, generator=generator))
        fields = torch.fft.ifft2(white * radius ** (-slope)).real
        turns = torch.randint(1, side // 5, (count, 1, 1), generator=generator)
        grid = torch.arange(side) / side * 2 * torch.pi
        grating = torch.sin(turns * grid[None, None, :] + 0.3 * fields)
        fields = torch.where(chance(generator, count, 0.25)[:, None, None], grating, fields)
        fields = fields - fields.mean((1, 2), keepdim=True)
        self._fields = (fields / fields.std((1, 2), keepdim=True)).to(device)[:, None]

    def sample(self, generator: torch.Generator, count: int, frame: Frame) -> Tensor:
        """BxHxW: a random field for each, at a random scale, angle and place."""
        which = torch.randint(len(self._fields), (count,), generator=generator)
        scale = torch.exp(uniform(generator, count, -1.2, 1.2))
        angle = uniform(generator, count, 0, 2 * torch.pi)
        device = frame.x.device
        cosine, sine, shift = (
            sent(value, device)[:, None, None]
            for value in (angle.cos() / scale, angle.sin() / scale, uniform(generator, count, 0, 1000))
        )
        x = frame.x * cosine + frame.y * sine + shift
        y = frame.y * cosine - frame.x * sine + shift
        side = self._fields.shape[-1]
        wrapped = torch.stack([x % side, y % side], -1) / side * 2 - 1
        fields = self._fields[sent(which, device)]
        return F.grid_sample(fields, wrapped, padding_mode="reflection", align_corners=False)[:, 0]
