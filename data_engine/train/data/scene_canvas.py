"""What a batch of procedural scenes is painted on and with: canvas, colours, textures, light, and the camera."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from data_engine.train.data.scene_shapes import Frame, Textures, chance, half_planes, sent, uniform

_COLOURS = 8  # of a scene's palette


@dataclass(frozen=True, slots=True)
class Canvas:
    """B scenes in the making. Random numbers come from the CPU, so that they are the same on every device."""

    generator: torch.Generator
    frame: Frame
    textures: Textures
    palette: Tensor  # BxNx3 float32, on the CPU
    pixels: Tensor  # Bx3xHxW float32, 0..255
    levels: Tensor  # Bx3xHxW int32

    @classmethod
    def blank(cls, generator: torch.Generator, count: int, frame: Frame, textures: Textures) -> Canvas:
        height, width = frame.x.shape[-2:]
        shape, device = (count, 3, height, width), frame.x.device
        return cls(
            generator,
            frame,
            textures,
            _palettes(generator, count),
            torch.zeros(shape, device=device),
            torch.zeros(shape, dtype=torch.int32, device=device),
        )

    def first(self, count: int) -> Canvas:
        """The first `count` scenes: painting there paints here."""
        return replace(self, palette=self.palette[:count], pixels=self.pixels[:count], levels=self.levels[:count])

    def __len__(self) -> int:
        return len(self.pixels)

    def placed(self, values: Tensor) -> Tensor:
        """B on the CPU -> Bx1x1 on the device."""
        return sent(values, self.pixels.device)[:, None, None]

    def paint(self, coverage: Tensor, surface: Tensor, ids: tuple[Tensor | int, ...]) -> None:
        """Lays `surface` (Bx3xHxW) over the canvas where `coverage` (BxHxW) is; ids: one a level, BxHxW or a number."""
        self.pixels.lerp_(surface, coverage[:, None])
        solid = coverage >= 0.5
        for level, number in zip(self.levels.unbind(1), ids, strict=True):
            level.copy_(torch.where(solid, number, level))

    def darken(self, shade: Tensor) -> None:
        """Multiplies the pixels by 1 - shade (BxHxW)."""
        self.pixels.mul_(1 - shade[:, None])

    def colours(self) -> Tensor:
        """Bx3 on the device: a colour of each palette."""
        which = torch.randint(_COLOURS, (len(self),), generator=self.generator)
        return sent(self.palette[torch.arange(len(self)), which], self.pixels.device)

    def near_or_new(self, colours: Tensor) -> Tensor:
        """Bx3: a colour like the one given, or another one of the palette."""
        near = colours + sent(22 * torch.randn(len(self), 3, generator=self.generator), colours.device)
        new = sent(chance(self.generator, len(self), 0.6), colours.device)
        return torch.where(new[:, None], self.colours(), near.clamp(0, 255))

    def texture(self) -> Tensor:
        """Bx3xHxW: what a surface adds to its colour."""
        count = len(self)
        strength = (20 * torch.randn(count, generator=self.generator)).abs() * chance(self.generator, count, 0.8)
        tint = 1 + 0.15 * torch.randn(count, 3, generator=self.generator)
        amount = sent(strength[:, None] * tint, self.pixels.device)[:, :, None, None]
        return amount * self.textures.sample(self.generator, count, self.frame)[:, None]

    def surface(self, colours: Tensor) -> Tensor:
        """Bx3xHxW: a colour (Bx3), textured."""
        return colours[:, :, None, None] + self.texture()


def light(canvas: Canvas) -> None:
    """Light and shade over the whole scene, across all boundaries."""
    generator, count = canvas.generator, len(canvas)
    coarse = sent(torch.randn(count, 1, 4, 4, generator=generator), canvas.pixels.device)
    gain = F.interpolate(coarse, canvas.pixels.shape[-2:], mode="bicubic", align_corners=False)
    strength = uniform(generator, count, 0, 0.25) * chance(generator, count, 0.6)
    canvas.pixels.mul_((1 + canvas.placed(strength)[:, None] * gain).clamp(0.3, 1.8))
    depth = uniform(generator, count, 0.1, 0.5) * chance(generator, count, 0.2)
    canvas.darken(canvas.placed(depth) * half_planes(generator, count, canvas.frame, level=0.2))


def photographed(generator: torch.Generator, pixels: Tensor, strength: float = 1.0) -> Tensor:
    """Bx3xHxW float32 in 0..255 -> what a camera makes of it: exposure, blur, noise; uint8. Noise is the device's own.

    `strength` scales the defects, not the colours.
    """
    count, device = len(pixels), pixels.device

    def placed(values: Tensor) -> Tensor:
        return sent(values, device)[:, None, None, None]

    x = (pixels / 255).clamp(0, 1) ** placed(torch.exp(0.25 * torch.randn(count, generator=generator)))
    grey = x.mean(1, keepdim=True)
    saturation = torch.exp(0.3 * torch.randn(count, generator=generator)) * ~chance(generator, count, 0.06)
    x = grey + placed(saturation) * (x - grey)
    blur = uniform(generator, count, 0, 1) * chance(generator, count, 0.5 * strength)
    x = torch.lerp(x, F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, 1), placed(blur))
    sensor = torch.Generator(device).manual_seed(int(torch.randint(1 << 31, (), generator=generator)))
    sigma = (0.025 * torch.randn(count, generator=generator)).abs() * chance(generator, count, 0.6 * strength)
    x = x + placed(sigma) * (1.3 - x) * torch.randn(x.shape, generator=sensor, device=device)
    return (x * 255 + 0.5).clamp(0, 255).to(torch.uint8)


def _palettes(generator: torch.Generator, count: int) -> Tensor:
    """BxNx3 colours that go together: of three hues, from dark to light."""
    base = 255 * torch.rand(count, 3, 3, generator=generator)
    chosen = base[torch.arange(count)[:, None], torch.randint(3, (count, _COLOURS), generator=generator)]
    grey = chosen.mean(-1, keepdim=True)
    chosen = grey + torch.rand(count, 1, 1, generator=generator) * (chosen - grey)
    brightness = 60 * torch.randn(count, _COLOURS, 1, generator=generator)
    return (chosen + brightness + 12 * torch.randn(count, _COLOURS, 3, generator=generator)).clamp(0, 255)
