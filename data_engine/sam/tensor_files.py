"""Files of tensors by name, in torch's and safetensors' containers: reading them without running what is in them."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from data_engine.errors import CheckpointError

USABLE = "use a known model, a checkpoint of segment-anything, or a SamModel saved by transformers"


def read_state(path: Path) -> dict[str, Tensor]:
    """A file of tensors by name, whatever its container. Raises CheckpointError."""
    with path.open("rb") as file:
        head = file.read(512)
    if not head:
        raise CheckpointError(f"{path} is empty: fetch it again")
    if head.startswith(b"version https://git-lfs"):
        raise CheckpointError(f"{path} is a git-LFS pointer, not the weights: run `git lfs pull` where it came from")
    if head.lstrip()[:1] == b"<":
        raise CheckpointError(
            f"{path} is a web page, not the weights: the download was answered with HTML; fetch it again"
        )
    safe = head[8:9] == b"{"  # after eight bytes of length, safetensors go on with JSON
    if not safe and not head.startswith((b"PK", b"\x80")):  # torch's zip format, and its older bare one
        raise CheckpointError(f"{path} is neither a torch file nor safetensors, or it is damaged: {USABLE}")
    try:
        if safe:
            with safe_open(path, framework="pt") as tensors:
                return {key: tensors.get_tensor(key) for key in tensors.keys()}  # noqa: SIM118 (not a dict)
        with path.open("rb") as file:  # torch would judge a path by its suffix
            loaded = torch.load(file, map_location="cpu", weights_only=True)
    except (SafetensorError, RuntimeError, EOFError, OSError) as error:
        raise CheckpointError(
            f"{path} ({path.stat().st_size:,} bytes) cannot be read, it is probably cut off or damaged: "
            f"fetch it again ({_first_line(error)})"
        ) from None
    except Exception as error:  # the unpickler refuses what is not tensors, with several exception types
        raise CheckpointError(
            f"{path} is damaged or holds more than tensors, and was not opened ({_first_line(error)}): "
            "a SAM checkpoint is a dict of tensors; never load one from a source you do not trust"
        ) from None
    for wrapper in ("model", "state_dict"):
        if isinstance(loaded, dict) and isinstance(loaded.get(wrapper), dict):
            loaded = loaded[wrapper]
    if not isinstance(loaded, dict):
        raise CheckpointError(f"{path} holds a {type(loaded).__name__}, not a dict of tensors: {USABLE}")
    for key, value in loaded.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise CheckpointError(f"{path} is not a dict of tensors: {key!r} is a {type(value).__name__}; {USABLE}")
    return {key.removeprefix("module."): value for key, value in loaded.items()}


def _first_line(error: Exception) -> str:
    lines = (line.strip() for line in str(error).splitlines())
    # torch's own first line on a suspicious pickle is the advice to load it without weights_only.
    return next((line for line in lines if line and "weights_only" not in line), type(error).__name__)[:200]
