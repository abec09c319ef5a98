"""The decoder's attention between tokens and image, whole operations against the device's own way, in turns:

    python benchmarks/decoder_attention.py [--device cuda] [--prompts 512] [--output FILE.json]

At the released models' sizes: 64x64 cells of 256 channels, 7 tokens and 8 heads. Bytes are the least that must move: an
image a prompt read once, and where it changes written once.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import nn

from data_engine.bench.machine import machine_facts
from data_engine.sam.image_attention import Whole, image_attention

CELLS, CHANNELS, HEADS, TOKENS = 4096, 256, 8, 7


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--prompts", type=int, help="at a time; default 512, on a CPU 8")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    device = torch.device(options.device)
    prompts = options.prompts or (8 if device.type == "cpu" else 512)
    torch.backends.cuda.matmul.allow_tf32 = True  # as precision "fast" has it
    with torch.inference_mode():
        table = measure(device, prompts, options.repeats)
    report = {"machine": machine_facts(device), "prompts": prompts, "repeats": options.repeats, "operations": table}
    for name, row in table.items():
        print(
            f"{name:14}",
            *(f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in row.items()),
        )
    if options.output:
        options.output.write_text(json.dumps(report, indent=1) + "\n")


def measure(device: torch.device, prompts: int, repeats: int) -> dict[str, dict[str, float | str]]:
    rows = HEADS * TOKENS
    random = torch.Generator(device).manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, device=device, generator=random)

    image, shared, positions = normal(prompts, CELLS, CHANNELS), normal(CELLS, CHANNELS), normal(CELLS, CHANNELS)
    of_tokens, offset, added = (
        0.1 * normal(prompts, rows, CHANNELS),
        normal(prompts, rows, 1),
        normal(prompts, rows, CHANNELS),
    )
    norm = nn.LayerNorm(CHANNELS, device=device)
    ways = {
        "whole": lambda given, few: Whole(given, positions, few),
        "own": lambda given, few: image_attention(given, positions, few=few),
    }
    image_bytes = 4 * prompts * CELLS * CHANNELS
    operations: dict[str, tuple[Callable, int]] = {
        "first scatter": (
            lambda way: way(shared, False).scatter(of_tokens, offset, added, HEADS, norm, overwrite=False),
            image_bytes,
        ),
        "gather": (lambda way: way(image, False).gather(of_tokens), image_bytes),
        "last gather": (lambda way: way(image, True).gather(of_tokens[:, :HEADS]), image_bytes),
        "scatter": (
            lambda way: way(image, False).scatter(of_tokens, offset, added, HEADS, norm, overwrite=False),
            2 * image_bytes,
        ),
    }
    table: dict[str, dict[str, float | str]] = {}
    for name, (operation, moved) in operations.items():
        results = {way: operation(make) for way, make in ways.items()}
        seconds: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(repeats):
            for way, make in ways.items():
                seconds[way].append(timed(partial(operation, make), device))
        whole, own = (statistics.median(seconds[way]) for way in ways)
        table[name] = {
            "way": type(image_attention(image, positions)).__name__,
            "whole_us_a_prompt": 1e6 * whole / prompts,
            "own_us_a_prompt": 1e6 * own / prompts,
            "times_faster": whole / own,
            "own_gb_a_second": moved / own / 1e9,
            "largest_difference": float((results["whole"] - results["own"]).abs().max()),
        }
    return table


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
