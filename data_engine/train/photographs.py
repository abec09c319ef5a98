"""The photographs that training may use: random views of them with their region hierarchies.

A folder of JPEGs, and beside them `objects.json` with outlines of whole objects for those photographs that have any:
{"photo.jpg": [[[x0, y0, x1, y1, ...], ...], ...]}, one list of polygons an object, in pixels of the file.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from data_engine.errors import ConfigError
from data_engine.train.regions import RegionTree, region_tree
from data_engine.train.scene import Scene

_WORKING_SIDE = 512  # regions are found at this size: details below it are not worth a target
_SMALLEST_SHARE = 0.35  # of the photograph's side that a view shows
_MAGNIFIED = 2.0  # at most: a blurred view teaches blurred boundaries


@dataclass(frozen=True, slots=True)
class Photograph:
    name: str
    pixels: np.ndarray  # HxWx3 uint8
    tree: RegionTree
    objects: np.ndarray  # HxW int32, 0 where no outlined object is

    def view(self, rng: np.random.Generator, height: int, width: int) -> Scene:
        """A random part of the photograph at height x width, perhaps mirrored, with nested regions as levels.

        Where an outlined object is, it is the whole and the regions inside it are its parts.
        """
        levels = self.tree.levels(_cuts(rng))
        inside = self.objects > 0
        # Outlined objects cut regions, so that the levels stay nested.
        step = int(levels.max()) + 1
        levels = levels + np.where(inside, (1 + self.objects) * step, 0)
        levels[0] = np.where(inside, (1 + self.objects) * step, levels[0])
        share = min(1.0, max(height, width) / max(self.pixels.shape[:2]) / _MAGNIFIED)
        box = _random_box(rng, self.pixels.shape[:2], height / width, max(_SMALLEST_SHARE, share))
        mirrored = rng.random() < 0.5
        image = Image.fromarray(self.pixels).resize((width, height), Image.Resampling.BILINEAR, box=box)
        rows = np.clip(
            (box[1] + (np.arange(height) + 0.5) * (box[3] - box[1]) / height).astype(int), 0, len(self.pixels) - 1
        )
        columns = np.clip(
            (box[0] + (np.arange(width) + 0.5) * (box[2] - box[0]) / width).astype(int), 0, self.pixels.shape[1] - 1
        )
        labels = levels[:, rows[:, None], columns]
        pixels = np.asarray(image)
        if mirrored:
            pixels, labels = pixels[:, ::-1], labels[:, :, ::-1]
        return Scene(np.ascontiguousarray(pixels), np.ascontiguousarray(labels, dtype=np.int32))

    def palette(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """Colours that occur together in this photograph: count x 3 float32."""
        flat = self.pixels.reshape(-1, 3)
        return flat[rng.integers(len(flat), size=count)].astype(np.float32)


def load_photographs(folder: Path) -> list[Photograph]:
    """Every JPEG of a folder, in order of name. Raises ConfigError if there is none."""
    paths = sorted(folder.glob("*.jpg"))
    if not paths:
        raise ConfigError(f"no photographs (*.jpg) in {folder}: training needs some for their regions and textures")
    outlines_file = folder / "objects.json"
    outlines = json.loads(outlines_file.read_text()) if outlines_file.is_file() else {}
    return [_load(path, outlines.get(path.name, [])) for path in paths]


def load_textures(folder: Path) -> list[np.ndarray]:
    """Every JPEG of a folder as HxWx3 uint8: pictures that are texture from edge to edge. There may be none."""
    return [np.asarray(Image.open(path).convert("RGB")) for path in sorted(folder.glob("*.jpg"))]


def _load(path: Path, outlines: list[list[list[float]]]) -> Photograph:
    image = Image.open(path).convert("RGB")
    objects = Image.new("I", image.size)
    draw = ImageDraw.Draw(objects)
    for number, polygons in enumerate(outlines, 1):
        for polygon in polygons:
            draw.polygon(polygon, fill=number)
    scale = min(1.0, _WORKING_SIDE / max(image.size))
    size = (round(image.width * scale), round(image.height * scale))
    pixels = np.asarray(image.resize(size, Image.Resampling.BILINEAR))
    return Photograph(
        path.name,
        pixels,
        region_tree(pixels),
        np.asarray(objects.resize(size, Image.Resampling.NEAREST), dtype=np.int32),
    )


def _cuts(rng: np.random.Generator) -> tuple[int, int, int]:
    """How many regions the coarsest, middle and finest level have."""
    coarse = int(np.exp(rng.uniform(np.log(6), np.log(20))))
    middle = int(coarse * rng.uniform(1.8, 3.5))
    return coarse, middle, int(middle * rng.uniform(1.8, 3.5))


def _random_box(
    rng: np.random.Generator, shape: tuple[int, int], aspect: float, smallest: float
) -> tuple[float, float, float, float]:
    """(x0, y0, x1, y1) of a random part: from `smallest` of the photograph's side to all of it, of near the aspect."""
    aspect *= np.exp(rng.normal(0, 0.08))
    height = min(shape[0], shape[1] * aspect)
    height *= 1.0 if rng.random() < 0.25 else rng.uniform(smallest, 1.0)
    width = min(height / aspect, shape[1])  # rounding must not carry it over the edge
    top, left = rng.uniform(0, shape[0] - height), rng.uniform(0, shape[1] - width)
    return left, top, min(left + width, shape[1]), min(top + height, shape[0])
