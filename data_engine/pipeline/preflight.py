"""What can be known of a job's model before an output is claimed for it: it is a SAM, and there is a device."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from data_engine.config import JobConfig
from data_engine.sam.checkpoint_layouts import from_huggingface, is_huggingface
from data_engine.sam.checkpoints import load_checkpoint, registry, resolve
from data_engine.sam.model import Sam, SamArchitecture, Uninitialised
from data_engine.sam.remote_checkpoints import is_url
from data_engine.sam.segmenter import choose_device


def check_model(config: JobConfig) -> None:
    """Raises what loading the model would raise: CheckpointError, UsageError. Reads shapes, not weights.

    For an engine that works in this process the device is checked too, and what is not here yet is fetched.
    """
    here = config.run.engine == "local"
    name = config.model.name
    if here:
        choose_device(config.run.device)
    if name in registry():
        if here:
            resolve(name)  # a known sha256 is a known SAM
    elif here or not is_url(name):
        _, path, _ = resolve(name)
        if not _has_the_shapes_of_a_sam(path):
            load_checkpoint(name)  # says what it is instead


def _has_the_shapes_of_a_sam(path: Path) -> bool:
    """Whether the file certainly is one. False for whatever takes a closer look, such as other decoder heads."""
    try:
        state = _shapes(path)
        if is_huggingface(state):
            state = from_huggingface(state)
        architecture = SamArchitecture.of_state(state)
        with torch.device("meta"), Uninitialised():
            expected = Sam(architecture).state_dict()
        nothing_else = state.keys() - expected.keys() <= {"pixel_mean", "pixel_std"}
        return nothing_else and all(state[key].shape == tensor.shape for key, tensor in expected.items())
    except Exception:  # a hostile file raises nearly everything; whoever looks closer explains it
        return False


def _shapes(path: Path) -> dict[str, Tensor]:
    """Tensors without data, by name."""
    with path.open("rb") as file:
        if file.read(9)[8:] == b"{":
            with safe_open(path, framework="pt") as tensors:
                sizes = {key: tensors.get_slice(key).get_shape() for key in tensors.keys()}  # noqa: SIM118 (not a dict)
            return {key: torch.empty(size, device="meta") for key, size in sizes.items()}
        file.seek(0)
        loaded = torch.load(file, map_location="meta", weights_only=True)
    for wrapper in ("model", "state_dict"):
        if isinstance(loaded.get(wrapper), dict):
            loaded = loaded[wrapper]
    return {key.removeprefix("module."): value for key, value in loaded.items()}
