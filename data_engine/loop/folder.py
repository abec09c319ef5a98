"""A loop's folder: where each step leaves its output, by which it is known to be done.

OUTPUT/
  loop.json                 input, settings and model: another loop is refused here
  evaluation.json           of the model before round 1
  round-1/masks/            a dataset, by the model before the round (or below `datasets`)
  round-1/training/         model.safetensors, card.json, logs
  round-1/evaluation.json   of the model after the round
  rounds.json, rounds.md    the table, written anew after every round
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from data_engine.config import differences
from data_engine.dataset.commits import PLAN_FILE
from data_engine.errors import DatasetError, PlanMismatch, StorageError, UsageError
from data_engine.sam.atomic_files import put_file
from data_engine.storage import filesystem, is_local, join, local_path

IDENTITY, EVALUATION = "loop.json", "evaluation.json"
WEIGHTS, CARD = "model.safetensors", "card.json"


class LoopFolder:
    def __init__(self, output: str, datasets: str | None = None) -> None:
        """Raises UsageError for a URL: trainings write to local folders."""
        if not is_local(output):
            raise UsageError(
                f"{output}: a loop trains in a local folder; datasets may lie in a store: --set datasets=s3://bucket/loop"
            )
        self.path = local_path(output)
        self._datasets = datasets or str(self.path)

    def make(self) -> None:
        """Raises StorageError where it cannot be."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(f"{self.path} cannot be made: {error.strerror}; choose another OUTPUT") from None

    def settle(self, identity: dict[str, Any]) -> bool:
        """Begins the loop, or goes on with the same one (True). Raises PlanMismatch where another one has begun."""
        stands = read_json(self.path / IDENTITY)
        if stands is None or not self._has_begun():  # as where the input of the first try was not there
            write_json(self.path / IDENTITY, identity)
            return False
        changed = differences(stands, json.loads(json.dumps(identity)))
        if changed:
            raise PlanMismatch(
                f"{self.path} holds a loop with other settings ({'; '.join(changed[:3])}): repeat them to go on, "
                "or choose another OUTPUT"
            )
        return True

    def _has_begun(self) -> bool:
        """Whether a step has left something, here or where the datasets go."""
        if any(self.path.glob("round-*")):
            return True
        fs, path = filesystem(join(self.masks(1), PLAN_FILE))
        return bool(fs.exists(path))

    def round(self, number: int) -> Path:
        return self.path / f"round-{number}"

    def masks(self, number: int) -> str:
        """The dataset of a round."""
        return join(self._datasets, f"round-{number}", "masks")

    def training(self, number: int) -> Path:
        return self.round(number) / "training"

    def weights(self, number: int) -> Path | None:
        """The weights that a round's training ended with; None while it has not."""
        folder = self.training(number)
        return folder / WEIGHTS if (folder / WEIGHTS).is_file() and (folder / CARD).is_file() else None

    def evaluation(self, number: int) -> Path:
        """Of the model after a round; 0: before the first."""
        return (self.round(number) if number else self.path) / EVALUATION


def read_json(path: Path) -> dict[str, Any] | None:
    """None where there is no file. Raises DatasetError for one that is no JSON object."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise DatasetError(f"{path} is damaged: remove it to do that step again")
    return content


def write_json(path: Path, content: Any) -> None:
    write_text(path, json.dumps(content, indent=1) + "\n")


def write_text(path: Path, text: str) -> None:
    """A kill leaves the old file or the new one."""

    def write(temporary: Path) -> None:
        temporary.write_text(text, encoding="utf-8")

    put_file(path, write, overwrite=True)
