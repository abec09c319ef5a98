"""What `precision: fast` changes: the same photographs masked with both precisions by the same model, masks compared.

    python benchmarks/precision.py examples/photos --model vit_b --limit 8 --set masks.points_per_side=16
    python benchmarks/precision.py examples/photos --model starter --config quickstart --limit 8

Counted both ways: the share of the masks of one that the other has too, at three overlaps. A mask without a partner of
IoU 0.9 is asked why: its score may lie within 0.02 of a threshold, or suppression may link it to one whose does; what
is left is unexplained. The same numbers, as JSON, with --output.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from data_engine.bench.machine import machine_facts
from data_engine.bench.models import load_model
from data_engine.bench.parity import RECALL_AT, Margins, Matched, matched
from data_engine.bench.photographs import read_photographs
from data_engine.config import load_config
from data_engine.masks.generator import MaskGenerator
from data_engine.sam.segmenter import Precision, SamSegmenter, choose_device


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("input")
    parser.add_argument("--model", default="starter", help="starter, vit_b, vit_l or vit_h with random weights, a file")
    parser.add_argument("--config", default="reference", help="a preset or a YAML file")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--limit", type=int, default=8, help="images")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    settings = load_config(arguments.config, arguments.set).masks
    device = choose_device(arguments.device)
    photographs = read_photographs(arguments.input, arguments.limit)
    generators = {precision: make(arguments.model, device, precision, settings) for precision in ("reference", "fast")}
    for generator in generators.values():
        generator.generate(photographs[0].pixels)  # warms up
    seconds = dict.fromkeys(generators, 0.0)
    scores: list[float] = []
    tally = Matched()
    for photograph in photographs:
        records: dict[str, list[dict[str, Any]]] = {}
        for precision, generator in generators.items():
            begun = time.process_time() if device.type == "cpu" else time.perf_counter()
            records[precision] = generator.generate(photograph.pixels)
            now = time.process_time() if device.type == "cpu" else time.perf_counter()
            seconds[precision] += (now - begun) / len(photographs)
        matched(records["fast"], records["reference"], settings, Margins.of("fast"), tally)
        scores += differences(records["fast"], records["reference"])
    result = {
        "model": arguments.model,
        "settings": {"config": arguments.config, "set": arguments.set},
        "device": str(device),
        "machine": machine_facts(device),
        "images": len(photographs),
        "seconds_an_image": seconds,  # of the processor on a CPU
        "matched": tally.as_dict(),
        "predicted_iou_difference": dict(zip(("median", "p99"), quantiles(scores), strict=True)),
    }
    show(result)
    if arguments.output:
        arguments.output.write_text(json.dumps(result, indent=1) + "\n")


def make(model: str, device: torch.device, precision: Precision, settings: Any) -> MaskGenerator:
    segmenter = SamSegmenter(load_model(model, device).sam, device, precision)
    return MaskGenerator(segmenter, settings, output_mode="coco_rle")


def differences(fast: list[dict[str, Any]], exact: list[dict[str, Any]]) -> list[float]:
    """Of predicted IoU, between masks that came from the same click and are the nearest in score."""
    by_click: dict[Any, list[float]] = {}
    for record in exact:
        by_click.setdefault(place_of(record), []).append(record["predicted_iou"])
    return [
        min(abs(record["predicted_iou"] - score) for score in by_click[place_of(record)])
        for record in fast
        if place_of(record) in by_click
    ]


def quantiles(scores: list[float]) -> list[float]:
    return np.quantile(scores or [0.0], (0.5, 0.99)).tolist()


def place_of(record: dict[str, Any]) -> tuple[float, ...]:
    return (*record["point_coords"][0], *record["crop_box"])


def show(result: dict[str, Any]) -> None:
    counts = result["matched"]
    table = Table("", *(f"at IoU {at}" for at in RECALL_AT), box=None)
    for key, name in (("recall_of_reference", "masks of reference found"), ("recall_of_ours", "masks of fast found")):
        table.add_row(name, *(f"{counts[key][str(at)]:.1%}" for at in RECALL_AT))
    console = Console(highlight=False)
    console.print(f"{result['model']}, {result['images']} images, {result['device']}")
    console.print(table)
    console.print(
        f"{counts['reference_masks']} masks with reference, {counts['masks']} with fast; without a partner "
        f"{counts['lost']} + {counts['extra']}: at a threshold {counts['at_a_threshold']}, linked to one "
        f"{counts['linked']}, unexplained {counts['unexplained']}"
    )
    moved = result["predicted_iou_difference"]
    console.print(f"predicted IoU moves by {moved['median']:.5f} (median), {moved['p99']:.5f} (99 %)")
    times = result["seconds_an_image"]
    console.print(f"seconds an image: {times['reference']:.2f} and {times['fast']:.2f}")


if __name__ == "__main__":
    main()
