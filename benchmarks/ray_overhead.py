"""What the Ray engine costs over the local one: both mask the same images with one worker, in turns, in one run.

    python benchmarks/ray_overhead.py INPUT --minutes 5 --output benchmarks/results/ray_overhead.json

Measured is the time from the first image done to the last one, which start-up does not touch, and the whole command.
The input is cut so that a run takes about --minutes. One thread for the model in both, and one for decoding.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import torch

from data_engine.config import load_config
from data_engine.pipeline.job import generate
from data_engine.pipeline.scaling import Stopwatch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("input")
    parser.add_argument("--minutes", type=float, default=5.0, help="of masking in each run")
    parser.add_argument("--rounds", type=int, default=1, help="local and Ray in turns, so often")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        speed = run("local", arguments.input, Path(scratch) / "try", 20, arguments.set)["seconds_an_image"]
        images = max(20, round(60 * arguments.minutes / speed))
        rounds = []
        for number in range(arguments.rounds):
            for engine in ("local", "ray"):
                rounds.append(run(engine, arguments.input, Path(scratch) / f"{engine}-{number}", images, arguments.set))
                print(json.dumps(rounds[-1]), flush=True)
    best = {e: min(r["seconds_an_image"] for r in rounds if r["engine"] == e) for e in ("local", "ray")}
    result = {
        "machine": f"{os.cpu_count()} cores, {platform.machine()}",
        "torch": torch.__version__,
        "date": time.strftime("%Y-%m-%d"),
        "settings": arguments.set,
        "rounds": rounds,
        "overhead": best["ray"] / best["local"] - 1,
    }
    print(f"Ray over local: {result['overhead']:+.2%}")
    if arguments.output:
        arguments.output.write_text(json.dumps(result, indent=1) + "\n")


def run(engine: str, source: str, output: Path, images: int, overrides: list[str]) -> dict:
    settings = [f"run.engine={engine}", "run.ray.workers=1", "run.ray.cpus_per_worker=1", "run.decode_threads=1"]
    config = load_config("quickstart", [*settings, "run.device=cpu", *overrides])
    watch = Stopwatch()
    generate(source, str(output), config, limit=images, progress=watch)
    masking = watch.times[-1] - watch.times[0]
    return {
        "engine": engine,
        "images": len(watch.times),
        "masking_seconds": round(masking, 2),
        "seconds_an_image": masking / (len(watch.times) - 1),
        "command_seconds": round(time.monotonic() - watch.begun, 2),
    }


if __name__ == "__main__":
    main()
