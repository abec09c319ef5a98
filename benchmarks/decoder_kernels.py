"""The decoder's passes over a prompt's own image: whole operations against the device's own way, in turns.

    python benchmarks/decoder_kernels.py [--device cuda] [--prompts 256] [--output FILE.json]

At the released models' sizes: 64x64 cells of 256 channels, 7 tokens and 8 heads, three masks. Bytes are the least that
must move: an image a prompt read once, and where it changes written once. On a CPU masks are drawn in one way only.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from data_engine.bench.machine import machine_facts
from data_engine.sam import fused_decoder
from data_engine.sam.image_attention import ImageAttention, Whole, image_attention
from data_engine.sam.model import Sam, SamArchitecture

CELLS, CHANNELS, HEADS, TOKENS, MASKS = 4096, 256, 8, 7, 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--prompts", type=int, help="at a time; default 256, on a CPU 8")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    device = torch.device(options.device)
    prompts = options.prompts or (8 if device.type == "cpu" else 256)
    torch.backends.cuda.matmul.allow_tf32 = True  # as precision "fast" has it
    with torch.inference_mode():
        operations = Operations(device, prompts)
        table = {name: compared(*each, device, prompts, options.repeats) for name, each in operations.all().items()}
    way = type(image_attention(operations.image, operations.positions)).__name__
    for name, row in table.items():
        print(f"{name:14}", *(f"{key} {value:.4g}  " for key, value in row.items()))
    report = {"machine": machine_facts(device), "way": way, "prompts": prompts, "repeats": options.repeats}
    if options.output:
        options.output.write_text(json.dumps({**report, "operations": table}, indent=1) + "\n")


class Operations:
    def __init__(self, device: torch.device, prompts: int) -> None:
        random = torch.Generator(device).manual_seed(0)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, device=device, generator=random)

        rows = HEADS * TOKENS
        self.image, self.shared, self.positions = (
            normal(prompts, CELLS, CHANNELS),
            normal(CELLS, CHANNELS),
            normal(CELLS, CHANNELS),
        )
        self.rows, self.offset = 0.1 * normal(prompts, rows, CHANNELS), normal(prompts, rows, 1)
        self.added, self.masks = normal(prompts, rows, CHANNELS), normal(prompts, MASKS, CHANNELS // 8)
        self.norm = nn.LayerNorm(CHANNELS, device=device)
        small = SamArchitecture(embed_dim=16, depth=1, num_heads=1, mlp_dim=16, global_blocks=())
        self.decoder = Sam(small).mask_decoder.to(device)

    def all(self) -> dict[str, tuple[Callable[[bool], Tensor], float]]:
        """Each takes whether to use whole operations; and the bytes that it must move."""
        image = 4.0 * self.image.numel()
        found: dict[str, tuple[Callable[[bool], Tensor], float]] = {
            "first scatter": (lambda whole: self._scatter(self.shared, whole), image),
            "gather": (lambda whole: self._way(self.image, whole).gather(self.rows), image),
            "scatter": (lambda whole: self._scatter(self.image, whole), 2 * image),
            "last gather": (lambda whole: self._way(self.image, whole, few=True).gather(self.rows[:, :HEADS]), image),
        }
        if self.image.device.type != "cpu":
            found["masks"] = (self._draw, image * (1 + 16 * MASKS / CHANNELS))
        return found

    def _way(self, image: Tensor, whole: bool, few: bool = False) -> ImageAttention:
        return Whole(image, self.positions, few) if whole else image_attention(image, self.positions, few=few)

    def _scatter(self, image: Tensor, whole: bool) -> Tensor:
        given: tuple[Any, ...] = (self.rows, self.offset, self.added, HEADS, self.norm)
        return self._way(image, whole).scatter(*given, overwrite=False)

    def _draw(self, whole: bool) -> Tensor:
        if not whole:
            return self.decoder.mask_logits(self.image, self.masks)
        with mock.patch.object(fused_decoder, "suits", return_value=False):
            return self.decoder.mask_logits(self.image, self.masks)


def compared(
    work: Callable[[bool], Tensor], moved: float, device: torch.device, prompts: int, repeats: int
) -> dict[str, float]:
    difference = (work(True) - work(False)).abs().max()
    seconds: dict[bool, list[float]] = {True: [], False: []}
    for _ in range(repeats):
        for whole, each in seconds.items():
            each.append(timed(partial(work, whole), device))
    plain, own = statistics.median(seconds[True]), statistics.median(seconds[False])
    return {
        "whole_us_a_prompt": 1e6 * plain / prompts,
        "own_us_a_prompt": 1e6 * own / prompts,
        "times_faster": plain / own,
        "own_gb_a_second": moved / own / 1e9,
        "largest_difference": float(difference),
    }


def timed(work: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    begun = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - begun


if __name__ == "__main__":
    main()
