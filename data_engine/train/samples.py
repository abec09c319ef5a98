"""The stream of training samples: sample number i is a function of (seed, i) alone.

That makes a run reproducible with any number of workers, and resumable at any step without saving their state.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from data_engine.train.augment import photographed
from data_engine.train.config import DataConfig
from data_engine.train.photographs import Photograph
from data_engine.train.prompts import Prompts, sample_prompts
from data_engine.train.scene import Scene
from data_engine.train.scenes import SceneMaker


@dataclass(slots=True)
class Sample:
    pixels: Tensor  # 3xSxS uint8, the image in the top-left corner
    size: tuple[int, int]  # (height, width) of the image in it
    clicks: Tensor  # Cx2 float32
    boxes: Tensor  # Bx4 float32
    targets: Tensor  # Px3x(4G)x(4G) bool, P = C + B
    valid: Tensor  # Px3 bool
    levels: Tensor  # 3x(4G)x(4G) int32: number of the region in the middle of a mask pixel, 0 where there is none


class SampleStream(Dataset):
    def __init__(
        self,
        config: DataConfig,
        seed: int,
        frame: int,
        mask_side: int,
        scenes: SceneMaker,
        photographs: list[Photograph],
    ) -> None:
        self.config = config
        self.seed = seed
        self.frame = frame
        self.mask_side = mask_side
        self.scenes = scenes
        self.photographs = photographs

    def __getitem__(self, index: int) -> Sample:
        rng = np.random.default_rng([self.seed, index])
        while True:  # a scene without a region large enough to prompt is drawn again
            scene = self.scene(rng)
            prompts = sample_prompts(
                rng,
                scene,
                clicks=self.config.clicks,
                boxes=self.config.boxes,
                frame=self.frame,
                mask_side=self.mask_side,
                grid_share=self.config.grid_share,
            )
            if prompts is not None:
                return _to_sample(scene, prompts, self.frame, self.mask_side)

    def scene(self, rng: np.random.Generator) -> Scene:
        """A photograph's view or a procedural scene, in a random format, as a random camera saw it."""
        height, width = _format(rng, self.frame)
        if rng.random() < self.config.photograph_share:
            photograph = self.photographs[rng.integers(len(self.photographs))]
            scene = photograph.view(rng, height, width)
            return Scene(photographed(rng, scene.image, strength=0.5), scene.levels)
        scene = self.scenes.draw(rng, height, width)
        return Scene(photographed(rng, scene.image), scene.levels)


def batches(stream: SampleStream, *, start: int, count: int, size: int, workers: int) -> Iterator[list[Sample]]:
    """Batches number start .. count-1 of `size` consecutive samples, in order."""
    numbers = [list(range(step * size, (step + 1) * size)) for step in range(start, count)]
    loader = DataLoader(
        stream, batch_sampler=numbers, num_workers=workers, collate_fn=list, prefetch_factor=4 if workers else None
    )
    yield from loader


def _format(rng: np.random.Generator, frame: int) -> tuple[int, int]:
    """(height, width) with the long side at `frame`: landscape, portrait or square."""
    short = int(frame * rng.choice((1.0, 0.75, 2 / 3, 0.5625, rng.uniform(0.5, 1)), p=(0.25, 0.25, 0.25, 0.05, 0.2)))
    return (short, frame) if rng.random() < 0.7 else (frame, short)


def _to_sample(scene: Scene, prompts: Prompts, frame: int, mask_side: int) -> Sample:
    height, width = scene.image.shape[:2]
    pixels = np.zeros((3, frame, frame), np.uint8)
    pixels[:, :height, :width] = scene.image.transpose(2, 0, 1)
    factor = frame // mask_side
    middles = scene.levels[:, factor // 2 :: factor, factor // 2 :: factor]
    levels = np.zeros((len(middles), mask_side, mask_side), np.int32)
    levels[:, : middles.shape[1], : middles.shape[2]] = middles
    return Sample(
        torch.from_numpy(pixels),
        (height, width),
        torch.from_numpy(prompts.clicks),
        torch.from_numpy(prompts.boxes),
        torch.from_numpy(prompts.targets),
        torch.from_numpy(prompts.valid),
        torch.from_numpy(levels),
    )
