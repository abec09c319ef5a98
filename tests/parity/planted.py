"""A pretend model with rich, known answers, for the reference's generator and for ours.

Real weights are slow, random weights give the same mask for every click. Here a click gives three ragged blobs around
the nearest of some hidden centres: neighbouring clicks agree (duplicates for the suppression), scores tie, blobs cross
crop edges, have holes and islands, and some are empty. Both generators get the same logits to the bit, so every
difference in the records is a difference of the generators.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from parity.reference import modeling
from torch import Tensor, nn

from data_engine.sam.resize import resize_image
from data_engine.sam.segmenter import Decoded, Embeddings, View

IMAGE_SIZE = 256
LOGITS_SIZE = 64


def answers(points: Tensor, *, spacing: float = 23.0, roughness: float = 3.0) -> tuple[Tensor, Tensor]:
    """points Px1x2 in the input frame -> logits Px3xLxL and predicted IoU Px3, a pure function of each point."""
    centres = (points[:, 0].double() / spacing).floor().long().tolist()
    logits, ious = zip(*(_blobs(column, row, spacing, roughness) for column, row in centres), strict=True)
    return torch.stack(logits), torch.stack(ious)


@lru_cache(maxsize=1024)
def _blobs(column: int, row: int, spacing: float, roughness: float) -> tuple[Tensor, Tensor]:
    """The three masks around one hidden centre: logits 3xLxL and predicted IoU 3."""
    random = np.random.default_rng(column * 1009 + row)
    cx, cy = (column + 0.5) * spacing, (row + 0.5) * spacing
    pixel = (torch.arange(LOGITS_SIZE, dtype=torch.float64) + 0.5) * (IMAGE_SIZE / LOGITS_SIZE)
    texture = torch.from_numpy(random.standard_normal((3, 16, 16)))
    texture = torch.nn.functional.interpolate(texture[None], (LOGITS_SIZE, LOGITS_SIZE), mode="bicubic")[0]
    radius = torch.from_numpy(random.uniform(-4, 1, 3) + np.array([12, 30, 70]) * random.uniform(0.3, 1.5))
    slope = torch.from_numpy(random.uniform(0.3, 1.5, 3))
    distance = ((pixel[None, :] - cx) ** 2 + (pixel[:, None] - cy) ** 2).sqrt()
    blob = (radius[:, None, None] - distance) * slope[:, None, None] + roughness * texture
    return blob.clamp(-20, 20).float(), torch.from_numpy(random.integers(70, 102, 3) / 100).float()


class PlantedSegmenter:
    """Ours."""

    image_size = IMAGE_SIZE
    logits_size = LOGITS_SIZE
    mask_threshold = 0.0
    device = torch.device("cpu")
    prompts_per_chunk = 48
    views_per_batch = prompt_threads = 1

    def __init__(self, **plant: float) -> None:
        self.plant = plant
        self.encoded: list[View] = []

    def prepare(self, image: np.ndarray) -> View:
        height, width = resize_image(image, self.image_size).shape[:2]
        return View(torch.zeros(3, 1, 1, dtype=torch.uint8), (height, width), image.shape[:2])

    def encode(self, views: list[View]) -> Embeddings:
        self.encoded += views
        return Embeddings(torch.zeros(len(views), 1, 1, 1))

    def decode(self, embeddings: Embeddings, view: int, *, points: Tensor, labels: Tensor, **_: object) -> Decoded:
        logits, iou = answers(points, **self.plant)
        return Decoded(iou, lambda wanted: logits[wanted])


def planted_reference(**plant: float) -> modeling.Sam:
    """Theirs: a real `Sam` whose three networks are replaced, so that its own pre- and postprocessing run."""

    class Encoder(nn.Module):
        img_size = IMAGE_SIZE

        def forward(self, images: Tensor) -> Tensor:
            return torch.zeros(1, 1, 1, 1)

    class Prompts(nn.Module):
        def forward(self, points: tuple[Tensor, Tensor], boxes: None, masks: None) -> tuple[Tensor, Tensor]:
            return points[0], torch.zeros(1)

        def get_dense_pe(self) -> Tensor:
            return torch.zeros(1)

    class Decoder(nn.Module):
        def forward(self, *, sparse_prompt_embeddings: Tensor, **_: object) -> tuple[Tensor, Tensor]:
            return answers(sparse_prompt_embeddings, **plant)

    return modeling.Sam(Encoder(), Prompts(), Decoder())


def picture(height: int, width: int) -> np.ndarray:
    return np.zeros((height, width, 3), np.uint8)
