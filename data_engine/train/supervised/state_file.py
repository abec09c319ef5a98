"""The state of a training on disk: written atomically, read without running what is in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from data_engine.config import differences
from data_engine.errors import CheckpointError, PlanMismatch
from data_engine.sam.atomic_files import put_file

FILE = "state.pt"
_FORMAT = 1


def write_state(folder: Path, identity: dict[str, Any], state: dict[str, Any]) -> None:
    """A kill leaves either the old state or the new one. `identity` says which training it is of, in plain values."""
    content = {"format": _FORMAT, "identity": identity, **state}

    def write(path: Path) -> None:
        try:
            with path.open("wb") as file:
                torch.save(content, file)
        except RuntimeError as error:  # torch's writer complains about what the file system said before
            raise error.__context__ if isinstance(error.__context__, OSError) else error from None

    put_file(folder / FILE, write, overwrite=True)


def read_state(folder: Path, identity: dict[str, Any]) -> dict[str, Any] | None:
    """None where there is none yet.

    Raises CheckpointError for a file that cannot be read, PlanMismatch for the state of another training.
    """
    path = folder / FILE
    if not path.exists():
        return None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises several types for damaged files
        raise CheckpointError(
            f"{path} cannot be read ({type(error).__name__}): remove it to start anew, or choose another --output"
        ) from None
    if state.get("format") != _FORMAT:
        raise CheckpointError(f"{path} was written by another version: choose another --output")
    changed = differences(state["identity"], identity)
    if changed:
        raise PlanMismatch(
            f"{folder} holds a training with other settings or data ({'; '.join(changed[:3])}): "
            "repeat them to go on, or choose another --output"
        )
    return state
