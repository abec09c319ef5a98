"""From a training run to a checkpoint that ships: python -m data_engine.train.export RUN DESTINATION

Writes DESTINATION.safetensors, the average weights in float16 in segment-anything's layout, and DESTINATION.json with
what is known of them.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
from pathlib import Path

import torch
from safetensors.torch import save

from data_engine.errors import CheckpointError
from data_engine.train.trainer import CHECKPOINT


def export(run: Path, destination: Path) -> Path:
    """Returns the weights' path. Raises CheckpointError when the run has no checkpoint yet."""
    source = run / CHECKPOINT
    if not source.is_file():
        raise CheckpointError(f"{run} has no {CHECKPOINT}: train there first")
    state = torch.load(source, map_location="cpu", weights_only=True)
    weights = save({name: tensor.half().contiguous() for name, tensor in sorted(state["average"].items())})
    facts = {"sha256": hashlib.sha256(weights).hexdigest(), "size": len(weights), "trained": state["progress"]}
    destination.parent.mkdir(parents=True, exist_ok=True)
    path = destination.with_suffix(".safetensors")
    _replace(path, weights)
    _replace(destination.with_suffix(".json"), (json.dumps(facts, indent=1) + "\n").encode())
    return path


def _replace(path: Path, data: bytes) -> None:
    temporary = path.with_name(path.name + ".new")
    temporary.write_bytes(data)
    os.replace(temporary, path)  # noqa: PTH105 - says what it does


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m data_engine.train.export", description="Export a trained SAM.")
    parser.add_argument("run", type=Path, help="output folder of the training")
    parser.add_argument("destination", type=Path, help="path of the checkpoint, without suffix")
    arguments = parser.parse_args()
    path = export(arguments.run, arguments.destination)
    print(f"{path}: {path.stat().st_size:,} bytes")  # noqa: T201 - a command's result


if __name__ == "__main__":
    main()
