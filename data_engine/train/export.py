"""From a training run to a checkpoint that ships: python -m data_engine.train.export RUN DESTINATION

Writes DESTINATION.safetensors, the average weights in float16 in segment-anything's layout, and DESTINATION.json with
what is known of them.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from data_engine.errors import CheckpointError
from data_engine.sam.atomic_files import put_file
from data_engine.sam.checkpoint_export import write_checkpoint
from data_engine.sam.checkpoint_facts import count_parameters
from data_engine.sam.model import SamArchitecture
from data_engine.train.trainer import CHECKPOINT


def export(run: Path, destination: Path) -> Path:
    """Returns the weights' path. Raises CheckpointError when the run has no checkpoint yet."""
    source = run / CHECKPOINT
    if not source.is_file():
        raise CheckpointError(f"{run} has no {CHECKPOINT}: train there first")
    state = torch.load(source, map_location="cpu", weights_only=True)
    weights = state["average"]
    path = destination.with_suffix(".safetensors")
    written = write_checkpoint(
        SamArchitecture.of_state(weights), weights, path, "segment-anything", "float16", overwrite=True
    )
    facts = {
        "sha256": written.sha256,
        "size": written.size,
        "parameters": sum(count_parameters(written.architecture).values()),
        "trained": state["progress"],
    }
    text = json.dumps(facts, indent=1) + "\n"
    put_file(destination.with_suffix(".json"), lambda file: _write(file, text), overwrite=True)
    return path


def _write(file: Path, text: str) -> None:
    file.write_text(text)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m data_engine.train.export", description="Export a trained SAM.")
    parser.add_argument("run", type=Path, help="output folder of the training")
    parser.add_argument("destination", type=Path, help="path of the checkpoint, without suffix")
    arguments = parser.parse_args()
    path = export(arguments.run, arguments.destination)
    print(f"{path}: {path.stat().st_size:,} bytes")  # noqa: T201 - a command's result


if __name__ == "__main__":
    main()
