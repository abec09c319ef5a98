"""Peak memory of masking one image, measured in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

# A segmenter of the released models' sizes whose masks are ragged discs around the clicks: many, and all different.
# `background` is the logit far away from a disc: above -1 the whole frame is in question, which is the worst case.
PROGRAM = """
import resource, sys
import numpy as np
import torch
from parity.planted import PlantedSegmenter
from data_engine.masks.generator import MaskGenerator
from data_engine.sam.segmenter import Decoded

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20

class Discs(PlantedSegmenter):
    image_size, logits_size, prompts_per_chunk = 1024, 256, 16

    def __init__(self, share, background):
        super().__init__()
        self.share, self.background = share, background
        self.random = np.random.default_rng(0)
        self.texture = torch.from_numpy(self.random.standard_normal((256, 256), np.float32))
        self.pixel = torch.arange(256) * 4.0 + 2

    def decode(self, embeddings, view, *, points, labels):
        iou = torch.from_numpy(self.random.random((len(points), 3), np.float32) < self.share).float()
        def logits(wanted):
            x, y = points[wanted.nonzero()[:, 0], 0].float().T[:, :, None, None]
            radius = torch.from_numpy(self.random.uniform(8, 90, (len(x), 1, 1)).astype(np.float32))
            distance = ((self.pixel[:, None] - y) ** 2 + (self.pixel - x) ** 2).sqrt()
            return ((radius - distance) + self.texture).clamp(self.background, 9)
        return Decoded(iou, logits)

torch.set_num_threads(1)
height, width, side, layers = (int(value) for value in sys.argv[1:5])
share, background, budget = (float(value) for value in sys.argv[5:])
image = np.full((height, width, 3), 100, np.uint8)
generator = MaskGenerator(
    Discs(share, background),
    points_per_side=side,
    crop_n_layers=layers,
    stability_score_thresh=0.0,
    box_nms_thresh=0.9,
    min_mask_region_area=100,
    memory_budget=int(budget),
)
before = peak()
masks = generator.run(generator.prepare(image))
counts = masks.filtered
print(len(masks), counts.candidates - counts.rejected_iou, before, peak())
"""


def measure(
    height: int, width: int, side: int, layers: int, *, share: float, background: float = -9, budget: int = 1 << 29
) -> tuple[int, int, float, float]:
    """-> masks, candidates past the predicted IoU, and the peak in GiB before masking and after."""
    arguments = [str(value) for value in (height, width, side, layers, share, background, budget)]
    tests = Path(__file__).parents[1]
    environment = {
        **os.environ,
        "PYTHONPATH": f"{tests}{os.pathsep}{tests.parent}",
        "OMP_NUM_THREADS": "1",
        "MALLOC_MMAP_THRESHOLD_": "65536",  # freed memory goes back at once: the peak is what is held, not fragments
    }
    output = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments], check=True, capture_output=True, text=True, env=environment
    ).stdout.split()
    return int(output[0]), int(output[1]), float(output[2]), float(output[3])


def test_candidates_held_are_bounded() -> None:
    """1,700 candidates, of which each needs all its logits, would take 0.32 GiB."""
    masks, candidates, before, after = measure(90, 120, 24, 0, share=1, background=-0.5, budget=2**24)
    assert candidates == 1728
    assert masks > 1000
    assert after - before < 0.15


def test_pixels_held_are_bounded() -> None:
    """At full size the 48 masks of this image's only chunk would take 3.6 GB of logits."""
    masks, candidates, before, after = measure(3600, 5000, 4, 0, share=1, background=-0.5)
    assert candidates == 48
    assert masks > 20
    assert after - before < 0.6


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_large_image_with_many_points_and_crops() -> None:
    """12,000 x 9,000 pixels, 64 x 64 points in each of 21 crops."""
    masks, candidates, _, after = measure(9_000, 12_000, 64, 2, share=0.1)
    assert candidates > 20_000
    assert masks > 1_000
    print(f"{masks} masks of {candidates} candidates, peak {after:.2f} GiB")
    assert after < 6
