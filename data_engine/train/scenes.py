"""Procedural scenes: layered objects made of parts, lit and photographed, with exact visible masks.

Objects are painted back to front. Whatever is painted takes the pixels where it covers more than half, at all three
levels, so visible masks are exact and nested by construction.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageFilter
from scipy import ndimage

from data_engine.train import shapes
from data_engine.train.photographs import Photograph
from data_engine.train.scene import Scene
from data_engine.train.textures import TextureBank, smooth_noise


@dataclass(slots=True)
class Canvas:
    pixels: np.ndarray  # HxWx3 float32, 0..255
    levels: np.ndarray  # 3xHxW int32
    next_id: int = 1

    def new_id(self) -> int:
        self.next_id += 1
        return self.next_id - 1

    def paint(self, alpha: np.ndarray, surface: np.ndarray, top: int, left: int, ids: tuple[int, int, int]) -> None:
        """Lays `surface` (hxwx3) over the canvas where `alpha` (hxw) covers it; what is outside is cut off."""
        overlap = self._overlap(alpha.shape, top, left)
        if overlap is None:
            return
        here, there = overlap
        alpha = alpha[there]
        self.pixels[here] += alpha[..., None] * (surface[there] - self.pixels[here])
        solid = alpha >= 0.5
        for level, number in zip(self.levels, ids, strict=True):
            level[here][solid] = number

    def darken(self, shade: np.ndarray, top: int, left: int) -> None:
        """Multiplies the pixels under `shade` (hxw) by 1 - shade."""
        overlap = self._overlap(shade.shape, top, left)
        if overlap is not None:
            here, there = overlap
            self.pixels[here] *= 1 - shade[there][..., None]

    def _overlap(
        self, shape: tuple[int, ...], top: int, left: int
    ) -> tuple[tuple[slice, slice], tuple[slice, slice]] | None:
        """(where on the canvas, where on a thing of this shape at (top, left)) the two overlap; None if nowhere."""
        height, width = self.pixels.shape[:2]
        y0, x0 = max(top, 0), max(left, 0)
        y1, x1 = min(top + shape[0], height), min(left + shape[1], width)
        if y0 >= y1 or x0 >= x1:
            return None
        return (slice(y0, y1), slice(x0, x1)), (slice(y0 - top, y1 - top), slice(x0 - left, x1 - left))


@dataclass(slots=True)
class Lighting:
    direction: np.ndarray  # 2, unit vector (y, x) towards the light
    hardness: float  # how much surfaces turn dark away from it
    shadow: float  # how dark cast shadows are


@dataclass(slots=True)
class SceneMaker:
    bank: TextureBank
    photographs: list[Photograph]
    _cutouts: list[tuple[Photograph, int]] = field(init=False)

    def __post_init__(self) -> None:
        self._cutouts = [(p, int(n)) for p in self.photographs for n in np.unique(p.objects) if n]

    def draw(self, rng: np.random.Generator, height: int, width: int) -> Scene:
        """A scene before its camera: see `augment.photographed`."""
        palette = self.photographs[rng.integers(len(self.photographs))].palette(rng, 64)
        angle = rng.uniform(0, 2 * np.pi)
        light = Lighting(np.array([np.sin(angle), np.cos(angle)]), rng.uniform(0, 0.5), rng.uniform(0, 0.6))
        canvas = self._background(rng, height, width, palette, light)
        side = max(height, width)
        dense = rng.random() < 0.35
        for _ in range(int(rng.integers(8, 30)) if dense else int(rng.integers(1, 9))):
            largest = 0.3 if dense else 0.9
            size = max(6, round(side * np.exp(rng.uniform(np.log(0.035 if dense else 0.08), np.log(largest)))))
            top = int(rng.integers(-size // 3, height - size + size // 3 + 1)) if size < height * 1.4 else -size // 8
            left = int(rng.integers(-size // 3, width - size + size // 3 + 1)) if size < width * 1.4 else -size // 8
            if self._cutouts and rng.random() < 0.2:
                self._paste_cutout(rng, canvas, size, top, left, light)
            else:
                self._object(rng, canvas, size, top, left, palette, light)
        self._illuminate(rng, canvas)
        return Scene(canvas.pixels.clip(0, 255).astype(np.uint8), canvas.levels)

    # ---- what is behind -------------------------------------------------------------------------------------------

    def _background(
        self, rng: np.random.Generator, height: int, width: int, palette: np.ndarray, light: Lighting
    ) -> Canvas:
        if rng.random() < 0.3:
            view = self.photographs[rng.integers(len(self.photographs))].view(rng, height, width)
            return Canvas(view.image.astype(np.float32), view.levels.copy(), int(view.levels.max()) + 1)
        canvas = Canvas(np.zeros((height, width, 3), np.float32), np.zeros((3, height, width), np.int32))
        for region in _layout(rng, height, width):
            surface = self._surface(rng, height, width, _pick(rng, palette), light)
            number = canvas.new_id()
            canvas.paint(region, surface, 0, 0, (number, number, number))
            if rng.random() < 0.15:  # a pattern of regions on it: tiles, fields, panels
                for piece in _layout(rng, height, width)[1:]:
                    colour = _near(rng, surface.mean((0, 1)))
                    canvas.paint(
                        piece * region,
                        self._surface(rng, height, width, colour, light),
                        0,
                        0,
                        (number, number, canvas.new_id()),
                    )
        return canvas

    # ---- what is in front -----------------------------------------------------------------------------------------

    def _object(
        self,
        rng: np.random.Generator,
        canvas: Canvas,
        size: int,
        top: int,
        left: int,
        palette: np.ndarray,
        light: Lighting,
    ) -> None:
        pieces = shapes.limbs(rng, size) if size >= 24 and rng.random() < 0.45 else [shapes.silhouette(rng, size)]
        softness = abs(rng.normal(0, 0.6)) if rng.random() < 0.3 else 0.0
        pieces = [_blurred(piece, softness) for piece in pieces]
        outline = np.max(pieces, axis=0)
        self._cast_shadow(rng, canvas, outline, top, left, light)
        shading = _relief(outline, light) if rng.random() < 0.7 else 1.0
        whole = canvas.new_id()
        colour = _pick(rng, palette)
        for index, piece in enumerate(pieces):
            if index and rng.random() < 0.6:
                colour = _pick(rng, palette) if rng.random() < 0.6 else _near(rng, colour)
            part = whole if len(pieces) == 1 else canvas.new_id()
            rest = canvas.new_id() if size >= 16 and rng.random() < 0.5 else part
            surface = self._surface(rng, size, size, colour, light) * np.asarray(shading)[..., None]
            if len(pieces) > 1 and rng.random() < 0.5:
                surface = surface * np.asarray(_relief(piece, light))[..., None]
            canvas.paint(piece, surface, top, left, (whole, part, rest))
            if rest != part:
                self._details(rng, canvas, piece, colour, top, left, palette, light, (whole, part))

    def _details(
        self,
        rng: np.random.Generator,
        canvas: Canvas,
        piece: np.ndarray,
        colour: np.ndarray,
        top: int,
        left: int,
        palette: np.ndarray,
        light: Lighting,
        ids: tuple[int, int],
    ) -> None:
        """Windows, patches, buttons, lettering; or a band across the piece."""
        size = len(piece)
        ys, xs = np.nonzero(piece > 0.5)
        if not len(ys):
            return
        repeated = rng.random() < 0.3
        side = max(4, round(size * rng.uniform(0.1, 0.45)))
        stamp = shapes.silhouette(rng, side)
        tone = _pick(rng, palette) if rng.random() < 0.6 else _near(rng, colour)
        for _ in range(int(rng.integers(2, 7)) if repeated else int(rng.integers(1, 4))):
            if not repeated:
                side = max(4, round(size * rng.uniform(0.1, 0.6)))
                stamp = _half_plane(rng, side) if rng.random() < 0.3 else shapes.silhouette(rng, side)
                tone = _pick(rng, palette) if rng.random() < 0.6 else _near(rng, colour)
            at = rng.integers(len(ys))
            y, x = (int(np.clip(c[at] - side // 2, 0, size - side)) for c in (ys, xs))
            alpha = stamp * piece[y : y + side, x : x + side]
            surface = self._surface(rng, side, side, tone, light)
            canvas.paint(alpha, surface, top + y, left + x, (*ids, canvas.new_id()))

    def _paste_cutout(
        self, rng: np.random.Generator, canvas: Canvas, size: int, top: int, left: int, light: Lighting
    ) -> None:
        """A real object out of one of the photographs, its regions for parts."""
        photograph, number = self._cutouts[rng.integers(len(self._cutouts))]
        mask = photograph.objects == number
        rows, columns = ndimage.find_objects(mask.astype(np.uint8))[0]
        height, width = rows.stop - rows.start, columns.stop - columns.start
        scale = size / max(height, width)
        shape = max(3, round(width * scale)), max(3, round(height * scale))

        def resized(array: np.ndarray, resampling: Image.Resampling) -> np.ndarray:
            return np.asarray(Image.fromarray(np.ascontiguousarray(array)).resize(shape, resampling))

        alpha = resized(mask[rows, columns].astype(np.float32), Image.Resampling.BILINEAR)
        surface = resized(photograph.pixels[rows, columns], Image.Resampling.BILINEAR).astype(np.float32)
        count = int(rng.integers(10, 60))
        parts = resized(photograph.tree.labels(count)[rows, columns], Image.Resampling.NEAREST)
        if rng.random() < 0.5:
            alpha, surface, parts = alpha[:, ::-1], surface[:, ::-1], parts[:, ::-1]
        self._cast_shadow(rng, canvas, alpha, top, left, light)
        whole = canvas.new_id()
        for part in np.unique(parts[alpha >= 0.5]):
            number = canvas.new_id()
            canvas.paint(alpha * (parts == part), surface, top, left, (whole, number, number))

    # ---- surfaces and light ---------------------------------------------------------------------------------------

    def _surface(
        self, rng: np.random.Generator, height: int, width: int, colour: np.ndarray, light: Lighting
    ) -> np.ndarray:
        """A colour, textured and unevenly lit: height x width x 3 float32."""
        tone: np.ndarray = np.zeros((height, width, 1), np.float32)
        if rng.random() < 0.8:
            tone = tone + self.bank.crop(rng, height, width)[..., None] * abs(rng.normal(0, 18))
            if rng.random() < 0.3:
                tone = tone + self.bank.crop(rng, height, width)[..., None] * abs(rng.normal(0, 12))
        tint = 1 + rng.normal(0, 0.15, 3)
        surface = colour + tone * tint.astype(np.float32)
        if rng.random() < 0.25:  # a second colour comes and goes
            share = 1 / (1 + np.exp(-3 * self.bank.crop(rng, height, width)[..., None]))
            surface = surface + share * (_near(rng, colour, 30) - colour)
        y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j].astype(np.float32)
        slope = (y * light.direction[0] + x * light.direction[1]) * light.hardness * rng.uniform(0.2, 1.0)
        return (surface * (1 + 0.6 * slope[..., None])).astype(np.float32)

    def _cast_shadow(
        self, rng: np.random.Generator, canvas: Canvas, alpha: np.ndarray, top: int, left: int, light: Lighting
    ) -> None:
        if light.shadow < 0.08 or rng.random() < 0.4:
            return
        size = max(alpha.shape)
        reach = size * rng.uniform(0.02, 0.15)
        margin = int(size * 0.15) + 2
        soft = _blurred(np.pad(alpha, margin), size * rng.uniform(0.01, 0.06))
        dy, dx = np.round(-light.direction * reach).astype(int)
        canvas.darken(soft * light.shadow, top - margin + int(dy), left - margin + int(dx))

    def _illuminate(self, rng: np.random.Generator, canvas: Canvas) -> None:
        """Light and shade over the whole scene, across all boundaries."""
        height, width = canvas.pixels.shape[:2]
        if rng.random() < 0.6:
            gain = 1 + 0.25 * rng.random() * smooth_noise(rng, height, width, int(rng.integers(1, 5)))
            canvas.pixels *= gain.clip(0.3, 1.8)[..., None]
        if rng.random() < 0.2:  # the edge of a shadow that belongs to nothing in sight
            shade = _blurred(_half_plane(rng, max(height, width)), abs(rng.normal(0, 4)))[:height, :width]
            canvas.darken(shade * rng.uniform(0.1, 0.5), 0, 0)


def _layout(rng: np.random.Generator, height: int, width: int) -> list[np.ndarray]:
    """Coverages of background regions, painted in order; the first covers everything."""
    side = max(height, width)
    everything = np.ones((height, width), np.float32)
    kind = rng.random()
    if kind < 0.25:
        return [everything]
    if kind < 0.7:  # planes behind one another: sky, hills, ground; wall, floor
        planes = []
        for _ in range(int(rng.integers(1, 4))):
            planes.append(_half_plane(rng, side, level=rng.random() < 0.6)[:height, :width])
        return [everything, *planes]
    seeds = np.zeros((side, side), bool)  # patches
    count = int(rng.integers(3, 16))
    seeds[rng.integers(side, size=count), rng.integers(side, size=count)] = True
    rows, columns = ndimage.distance_transform_edt(~seeds, return_distances=False, return_indices=True)
    warp = rng.uniform(0, 0.08) * side
    y, x = np.mgrid[:side, :side]
    cells = int(rng.integers(3, 9))
    y = np.clip(y + warp * smooth_noise(rng, side, side, cells), 0, side - 1).astype(int)
    x = np.clip(x + warp * smooth_noise(rng, side, side, cells), 0, side - 1).astype(int)
    owner = (rows * side + columns)[y, x][:height, :width]
    return [everything, *(np.asarray(owner == number, np.float32) for number in np.unique(owner)[1:])]


def _half_plane(rng: np.random.Generator, size: int, level: bool = False) -> np.ndarray:
    """One side of a straight, bent or ragged line through the square."""
    y, x = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j].astype(np.float32)
    angle = rng.normal(np.pi / 2, 0.1) if level else rng.uniform(0, 2 * np.pi)
    height = x * np.cos(angle) + y * np.sin(angle) - rng.uniform(-0.6, 0.6)
    if size > 8 and rng.random() < 0.6:
        height = height + rng.uniform(0, 0.2) * smooth_noise(rng, size, size, int(rng.integers(2, 12)))
    return np.clip(height * size / 2 + 0.5, 0, 1)


def _relief(alpha: np.ndarray, light: Lighting) -> np.ndarray:
    """Brightness of a rounded body with this outline: lit on the light's side, dark on the other."""
    bulge = _blurred(alpha, max(1.0, len(alpha) * 0.08))
    slope_y, slope_x = np.gradient(bulge)
    facing = -(slope_y * light.direction[0] + slope_x * light.direction[1]) * len(alpha) * 0.12
    return (1 + light.hardness * facing).clip(0.3, 1.8).astype(np.float32)


def _blurred(alpha: np.ndarray, radius: float) -> np.ndarray:
    if radius < 0.2:
        return alpha
    image = Image.fromarray((alpha * 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(radius))
    return np.asarray(image, dtype=np.float32) / 255


def _pick(rng: np.random.Generator, palette: np.ndarray) -> np.ndarray:
    return _near(rng, palette[rng.integers(len(palette))], 6)


def _near(rng: np.random.Generator, colour: np.ndarray, spread: float = 18) -> np.ndarray:
    """A similar colour: mostly lighter or darker, a little of another hue."""
    return (colour + rng.normal(0, spread) + rng.normal(0, spread / 3, 3)).clip(0, 255).astype(np.float32)
