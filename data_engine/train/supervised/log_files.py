"""What a training leaves to read: one JSON line a step, one a validation, and the same for TensorBoard."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from data_engine.errors import StorageError, UsageError
from data_engine.sam.atomic_files import put_file

if TYPE_CHECKING:
    from PIL import Image

STEPS, VALIDATIONS = "log.jsonl", "validation.jsonl"


class LogFiles:
    """Lines of steps after `step`, and of validations after `validated`, are taken off, for a run that was cut writes
    them again; -1 takes off all."""

    def __init__(self, folder: Path, step: int, validated: int, *, tensorboard: bool) -> None:
        self._folder = folder
        for name, last in ((STEPS, step), (VALIDATIONS, validated)):
            kept = [line for line in read_lines(folder / name) if line["step"] <= last]
            text = "".join(json.dumps(line) + "\n" for line in kept)
            put_text(folder / name, text)
        self._writer = _summary_writer(folder / "tensorboard", step) if tensorboard else None

    def step(self, record: dict[str, Any]) -> None:
        self._append(STEPS, record)
        if self._writer is not None:
            for name, value in record.items():
                if isinstance(value, float):
                    self._writer.add_scalar(f"train/{name}", value, record["step"])

    def validation(self, record: dict[str, Any], pictures: dict[str, Image.Image]) -> None:
        self._append(VALIDATIONS, record)
        if self._writer is None:
            return
        for clicks, scores in record["clicks"].items():
            for name, value in scores.items():
                self._writer.add_scalar(f"validation/{clicks} clicks {name}", value, record["step"])
        for name, picture in pictures.items():
            self._writer.add_image(name, np.asarray(picture), record["step"], dataformats="HWC")

    def flush(self) -> None:
        """Has all of it in the files."""
        if self._writer is not None:
            self._writer.flush()

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()

    def _append(self, name: str, record: dict[str, Any]) -> None:
        path = self._folder / name
        with writing(path), path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Every whole line; a kill may have cut the last one. Empty where there is no file."""
    return parse_lines(path.read_text(encoding="utf-8")) if path.exists() else []


def parse_lines(text: str) -> list[dict[str, Any]]:
    """As `read_lines`."""
    found = []
    for line in text.splitlines():
        try:
            found.append(json.loads(line))
        except ValueError:
            break
    return found


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raises StorageError for what the file system says inside of this."""
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"{path} cannot be written ({error.strerror or error}): free some space or repair the disk; "
            "the same command goes on from the last state"
        ) from None


def put_text(path: Path, text: str) -> None:
    """Writes a file at once, or not at all."""

    def write(temporary: Path) -> None:
        temporary.write_text(text, encoding="utf-8")

    put_file(path, write, overwrite=True)


def _summary_writer(folder: Path, step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise UsageError(
            "run.tensorboard needs tensorboard: pip install 'data-engine[train]', or --set run.tensorboard=false"
        ) from None
    return SummaryWriter(str(folder), purge_step=step + 1)
