"""Procedural scenes as training data: as many as are asked for, drawn anew in every epoch, masks exact.

A scene's masks are its wholes, its parts and its details, so that one pixel lies in up to three of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from rlemasklib import RLEMask

from data_engine.errors import ConfigError
from data_engine.train.data.labelled import DataFilters
from data_engine.train.data.pool import Example, Pool, Portion

_TOGETHER = 8  # scenes of one size that are drawn at once
_SHAPES = ((1.0, 1.0), (0.75, 1.0), (2 / 3, 1.0), (1.0, 0.75), (0.5625, 1.0), (1.0, 2 / 3))  # height and width


class Scenes(Pool):
    """`count` scenes with a longer side of `side` pixels, by `torch_scenes.SceneGenerator`."""

    kind = "scenes"

    def __init__(self, count: int, filters: DataFilters, side: int = 256) -> None:
        """Raises ConfigError for a count or side that is too small."""
        super().__init__(f"scenes:{count}x{side}", filters)
        if count < 1 or side < 32:
            raise ConfigError(f"scenes:{count}x{side}: at least 1 scene, of at least 32 pixels a side")
        self.side = side
        self._sizes = [min(_TOGETHER, count - first) for first in range(0, count, _TOGETHER)]

    def sizes(self) -> Sequence[int]:
        return self._sizes

    def image_ids(self) -> Iterator[str]:
        return iter(())  # they are no one's pictures

    def read(self, portion: Portion) -> Iterator[Example | None]:
        rng = np.random.default_rng([portion.seed, portion.epoch, portion.unit, 1])
        height, width = (round(share * self.side) for share in _SHAPES[rng.integers(len(_SHAPES))])
        images, levels = self._draw(rng, height, width)
        for position in portion.positions:
            masks = partial(region_masks, levels[position])
            name = _name(portion, portion.unit * _TOGETHER + position)
            yield Example(name, masks, partial(images.__getitem__, position))

    def _draw(self, rng: np.random.Generator, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
        """Images BxHxWx3 uint8 and levels Bx3xHxW int32 of a unit. A cut unit is drawn whole: scenes stay the same."""
        from data_engine.train.data.torch_scenes import SceneGenerator

        batch = SceneGenerator("cpu").draw(_TOGETHER, height, width, int(rng.integers(1 << 62)))
        return batch.images.permute(0, 2, 3, 1).contiguous().numpy(), batch.levels.numpy()


class PhotographScenes(Pool):
    """`count` scenes as the starter model was trained on: with the colours, textures and cut-outs of photographs."""

    kind = "scenes"

    def __init__(self, count: int, photographs: Path, filters: DataFilters, side: int = 256) -> None:
        """Raises ConfigError where the folder has no photographs."""
        super().__init__(f"scenes:{count}x{side}@{photographs}", filters)
        if not any(photographs.glob("*.jpg")):
            raise ConfigError(f"{self.source}: no photographs (*.jpg) in {photographs}")
        self.side = side
        self._count = count
        self._photographs = photographs

    def sizes(self) -> Sequence[int]:
        return [self._count]

    def image_ids(self) -> Iterator[str]:
        return iter(())  # they are no one's pictures

    def read(self, portion: Portion) -> Iterator[Example | None]:
        from data_engine.train.augment import photographed

        for position in portion.positions:
            rng = np.random.default_rng([portion.seed, portion.epoch, position, 1])
            height, width = (round(share * self.side) for share in _SHAPES[rng.integers(len(_SHAPES))])
            scene = self._maker.draw(rng, height, width)
            image = photographed(rng, scene.image)
            yield Example(_name(portion, position), partial(region_masks, scene.levels), partial(_same, image))

    @cached_property
    def _maker(self) -> Any:
        """Made where it is used: it takes a second a photograph, and is large to send to a worker."""
        from data_engine.train.photographs import load_photographs, load_textures
        from data_engine.train.scenes import SceneMaker
        from data_engine.train.textures import TextureBank

        photographs = load_photographs(self._photographs)
        pictures = [photograph.pixels for photograph in photographs]
        textures = load_textures(self._photographs / "textures")
        return SceneMaker(TextureBank.drawn(0, 160, [*pictures, *textures]), photographs)


def region_masks(levels: np.ndarray) -> list[RLEMask]:
    """3xHxW nested region numbers -> the masks of all regions, coarsest first, each once; 0 is no region."""
    masks: list[RLEMask] = []
    outer, outer_areas = np.zeros_like(levels[0]), {0: 0}
    for level in levels:
        numbers, first = np.unique(level, return_index=True)
        around = outer.ravel()[first].tolist()  # regions are nested: any pixel tells which one is around
        areas = {}
        for number, mask, owner in zip(numbers.tolist(), _each(level, numbers), around, strict=True):
            areas[number] = int(mask.area())
            if number and areas[number] != outer_areas[owner]:
                masks.append(mask)
        outer, outer_areas = level, areas
    return masks


def _each(level: np.ndarray, numbers: np.ndarray) -> Iterator[RLEMask]:
    """The mask of each number, in order."""
    places = np.searchsorted(numbers, level)
    for first in range(0, len(numbers), 255):  # as many as a label map of bytes has
        inside = (places >= first) & (places < first + 255)
        regions = RLEMask.from_label_map(np.where(inside, places - first + 1, 0).astype(np.uint8))
        yield from (regions[label] for label in sorted(regions))


def _name(portion: Portion, number: int) -> str:
    return f"scene-{portion.seed}-{portion.epoch}-{number}"


def _same(image: np.ndarray) -> np.ndarray:
    return image
