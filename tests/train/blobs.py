"""Images of coloured ellipses with their masks: in memory, on disk as id maps, and a tiny SAM's settings for them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from train.tiny_training import ARCHITECTURE

from data_engine.masks import rle
from data_engine.train.data.labelled import LabelledImage, Undecoded
from data_engine.train.supervised.settings import TrainingSettings


def draw(number: int, height: int = 60, width: int = 80) -> tuple[np.ndarray, np.ndarray]:
    """Image HxWx3 uint8 and ids HxW uint8: up to four ellipses on grey."""
    rng = np.random.default_rng(number)
    ids = Image.new("L", (width, height))
    pixels = rng.integers(90, 120, (height, width, 3), np.uint8)
    for one in range(1, 5):
        x, y, rx, ry = rng.integers(8, width - 8), rng.integers(8, height - 8), *rng.integers(6, 14, 2)
        ImageDraw.Draw(ids).ellipse((x - rx, y - ry, x + rx, y + ry), fill=one)
    array = np.asarray(ids)
    for one in range(1, 5):
        pixels[array == one] = rng.integers(0, 256, 3)
    return pixels, array


class Blobs:
    """A TrainingData of so many drawn images; those numbered in `bare` have no masks."""

    def __init__(self, count: int, bare: tuple[int, ...] = ()) -> None:
        self._images = []
        for number in range(count):
            pixels, ids = draw(number)
            masks = [] if number in bare else [rle.encode(ids == one) for one in np.unique(ids) if one]
            self._images.append(LabelledImage(f"{number}.png", pixels, masks))

    def epoch(self, epoch: int, *, seed: int, rank: int = 0, world: int = 1, skip: int = 0) -> Iterator[LabelledImage]:
        order = np.random.default_rng([seed, epoch]).permutation(len(self._images))[rank::world]
        for number, index in enumerate(order[skip:], skip + 1):
            image = self._images[index]
            yield LabelledImage(image.image_id, image.image, image.masks, number)

    def undecoded(self, epoch: int, **share: int) -> Iterator[Undecoded]:
        for image in self.epoch(epoch, **share):
            yield Undecoded(image.consumed, lambda image=image: image, lambda _: None)

    def __len__(self) -> int:
        return len(self._images)

    def describe(self) -> dict[str, Any]:
        return {"images": len(self._images)}


def write_id_maps(folder: Path, count: int) -> Path:
    for name in ("images", "segments"):
        (folder / name).mkdir(parents=True)
    for number in range(count):
        pixels, ids = draw(number)
        Image.fromarray(pixels).save(folder / "images" / f"{number}.png")
        Image.fromarray(ids).save(folder / "segments" / f"{number}.png")
    return folder


def settings_for(**sections: dict[str, Any]) -> TrainingSettings:
    """Small everything; sections are merged into it."""
    values: dict[str, dict[str, Any]] = {
        "model": {"architecture": {**asdict(ARCHITECTURE), "global_blocks": list(ARCHITECTURE.global_blocks)}},
        "data": {"jitter": [0.7, 1.5]},
        "prompts": {"per_image": 4, "corrections": 2, "mask_only_rounds": 1},
        "loss": {"upsample": 2},
        "optimizer": {"learning_rate": 1e-3, "warmup_steps": 2},
        "train": {"steps": 4, "images_per_batch": 2, "accumulate": 1, "frozen": []},
        "run": {"device": "cpu", "state_every_steps": 2, "tensorboard": False, "pictures": 1},
    }
    for name, section in sections.items():
        values[name] = {**values.get(name, {}), **section}
    if "name" in values["model"]:
        del values["model"]["architecture"]
    return TrainingSettings.model_validate(values)
