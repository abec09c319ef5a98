"""What the whole job costs over mask generation alone: fetch, decode, rows, Parquet and commits beside the model.

    python benchmarks/job_overhead.py PHOTOS --images 40 --rounds 2 --output benchmarks/results/job_overhead.json
    python benchmarks/job_overhead.py PHOTOS --model vit_b --images 6 --set masks.points_per_side=16

In turns, in one run: the generator alone, on pixels that are in memory already, and `generate` with the local engine
from files to a dataset. Of the job, the time from the first image done to the last one counts, which start-up does not
touch. Seconds by stage come from the commit records; all stages but encode and generate run beside the model.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import torch

from data_engine.bench.machine import machine_facts
from data_engine.bench.models import RANDOM_MODELS, load_model
from data_engine.bench.photographs import read_photographs
from data_engine.config import JobConfig, load_config
from data_engine.dataset.commits import read_commits
from data_engine.masks.generator import MaskGenerator
from data_engine.pipeline.job import generate
from data_engine.pipeline.scaling import Stopwatch
from data_engine.sam.checkpoint_export import write_checkpoint
from data_engine.sam.segmenter import choose_device, load_segmenter


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("input")
    parser.add_argument("--model", default="starter", help="starter, vit_b, vit_l or vit_h with random weights, a file")
    parser.add_argument("--config", help="a preset or a YAML file; default: quickstart for the starter, else reference")
    parser.add_argument("--images", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    device = choose_device(arguments.device)
    with tempfile.TemporaryDirectory() as scratch:
        model = weights_of(arguments.model, device, Path(scratch))
        preset = arguments.config or ("quickstart" if arguments.model == "starter" else "reference")
        config = load_config(preset, [f"model.name={model}", f"run.device={device}", *arguments.set])
        pixels = [photo.pixels for photo in read_photographs(arguments.input, arguments.images)]
        segmenter = load_segmenter(config.model.name, device, config.model.precision, compiled=config.model.compiled)
        generator = MaskGenerator(segmenter, config.masks, output_mode="coco_rle")
        rounds = []
        for number in range(arguments.rounds):
            alone = generator_alone(generator, pixels)
            job, stages = whole_job(arguments.input, Path(scratch) / f"out-{number}", config, len(pixels))
            rounds.append({"generator": alone, "job": job, "overhead": job / alone - 1, "stages": stages})
            print(json.dumps(rounds[-1]), flush=True)
    result = {
        "model": arguments.model,
        "settings": {"config": preset, "set": arguments.set},
        "images": len(pixels),
        "device": str(device),
        "machine": machine_facts(device),
        "date": time.strftime("%Y-%m-%d"),
        "rounds": rounds,
        "overhead": float(np.median([each["overhead"] for each in rounds])),
    }
    print(f"the whole job over the generator alone: {result['overhead']:+.1%}")
    if arguments.output:
        arguments.output.write_text(json.dumps(result, indent=1) + "\n")


def weights_of(model: str, device: torch.device, scratch: Path) -> str:
    """A name or file that a job can load."""
    if model not in RANDOM_MODELS:
        return model
    sam = load_model(model, device).sam
    path = scratch / f"{model}.safetensors"
    write_checkpoint(sam.architecture, sam.state_dict(), path, "segment-anything")
    return str(path)


def generator_alone(generator: MaskGenerator, pixels: list[np.ndarray]) -> float:
    """Seconds an image, the first one left out as it is of the job."""
    times = []
    for image in pixels:
        generator.run(generator.prepare(image))
        times.append(time.monotonic())
    return (times[-1] - times[0]) / (len(times) - 1)


def whole_job(source: str, output: Path, config: JobConfig, images: int) -> tuple[float, dict[str, float]]:
    """(seconds an image, those of each stage)."""
    watch = Stopwatch()
    generate(source, str(output), config, limit=images, progress=watch)
    stages: Counter[str] = Counter()
    for record in read_commits(str(output)):
        stages.update(record.timings)
    each = (watch.times[-1] - watch.times[0]) / (len(watch.times) - 1)
    return each, {stage: round(seconds / images, 5) for stage, seconds in stages.items()}


if __name__ == "__main__":
    main()
