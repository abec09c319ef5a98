"""Ground truth and a model that are known to the pixel: four upright stripes, and answers that are off by so much."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from data_engine.sam.segmenter import Decoded, Embeddings, View

SIDE = 256
STRIPE = 64
COLOURS = np.array([[200, 30, 30], [30, 200, 30], [40, 40, 220], [240, 240, 240]], np.uint8)


def ids() -> np.ndarray:
    """SIDExSIDE uint8: 1 2 3 4 from left to right."""
    return np.tile((np.arange(SIDE) // STRIPE + 1).astype(np.uint8), (SIDE, 1))


def regions() -> list[np.ndarray]:
    return [ids() == number for number in (1, 2, 3, 4)]


def write_picture(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(COLOURS[ids() - 1]).save(path)
    return path


class StripeSegmenter:
    """Answers with the stripe of the first click (or the middle of the box), each mask shifted right by some pixels.

    Shifts are multiples of 4, the pixels of a logit, so that masks come out to the pixel.
    """

    image_size = SIDE
    logits_size = SIDE // 4
    mask_threshold = 0.0
    device = torch.device("cpu")
    precision = "reference"
    checkpoint = None
    views_per_batch = 1
    prompt_threads = 1

    def __init__(
        self,
        *,
        shifts: tuple[int, int, int] = (0, 0, 0),
        promised: tuple[float, ...] = (1.0, 0.5, 0.2),
        single: int = 0,
    ) -> None:
        self.shifts, self.promised, self.single = shifts, promised, single
        self.prompts_per_chunk = 3  # four stripes are two chunks
        self.encoded = 0
        self.asked: list[dict[str, Tensor | bool | None]] = []

    def prepare(self, image: np.ndarray) -> View:
        return View(torch.from_numpy(image.transpose(2, 0, 1).copy()), image.shape[:2], image.shape[:2])

    def encode(self, views: list[View]) -> Embeddings:
        self.encoded += len(views)
        return Embeddings(torch.zeros(len(views), 1, 1, 1))

    def decode(
        self,
        embeddings: Embeddings,
        view: int,
        *,
        points: Tensor | None = None,
        labels: Tensor | None = None,
        boxes: Tensor | None = None,
        masks: Tensor | None = None,
        multimask: bool = True,
    ) -> Decoded:
        self.asked.append({"points": points, "labels": labels, "boxes": boxes, "masks": masks, "multimask": multimask})
        x = points[:, 0, 0] if points is not None else boxes[:, ::2].mean(1)
        first = (x / STRIPE).floor() * STRIPE
        pixel = (torch.arange(self.logits_size) + 0.5) * 4
        shifts = torch.tensor(self.shifts if multimask else (self.single,))
        low = (first[:, None] + shifts)[..., None]
        inside = ((pixel >= low) & (pixel < low + STRIPE)).float()
        logits = (20 * inside - 10)[:, :, None, :].expand(-1, -1, self.logits_size, -1).contiguous()
        promised = torch.tensor(self.promised[: len(shifts)]).expand(len(x), -1)
        return Decoded(promised, lambda wanted: logits[wanted])
