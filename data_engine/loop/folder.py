"""A loop's folder, local or in a store: where each step leaves its output, by which it is known to be done.

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
from typing import Any

from data_engine.config import differences
from data_engine.dataset.commits import PLAN_FILE
from data_engine.errors import DatasetError, PlanMismatch, StorageError, UsageError
from data_engine.pipeline.commit import put
from data_engine.retry import ONCE, PATIENT, retried
from data_engine.storage import (
    filesystem,
    is_local,
    join,
    list_names,
    local_path,
    read_bytes,
    redact,
    scheme_of,
    translated,
)

IDENTITY, EVALUATION = "loop.json", "evaluation.json"
WEIGHTS, CARD = "model.safetensors", "card.json"
_NO_STORE = ("http", "https", "hf")  # read-only; keeps every version of a training's state for good


class LoopFolder:
    def __init__(self, output: str, datasets: str | None = None) -> None:
        """Raises UsageError for a URL that a loop cannot write to."""
        if scheme_of(output) in _NO_STORE:
            raise UsageError(
                f"{redact(output)}: a loop's trainings write their states again and again; name a folder, or a store "
                "that takes that, such as s3://bucket/loop"
            )
        self.root = str(local_path(output)) if is_local(output) else output.rstrip("/")
        self._datasets = datasets or self.root

    def make(self) -> None:
        """Raises StorageError where it cannot be."""
        if not is_local(self.root):
            return
        folder = local_path(self.root)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(f"{folder} cannot be made: {error.strerror}; choose another OUTPUT") from None

    def settle(self, identity: dict[str, Any]) -> bool:
        """Begins the loop, or goes on with the same one (True). Raises PlanMismatch where another one has begun."""
        where = join(self.root, IDENTITY)
        stands = read_json(where)
        if stands is None or not self._has_begun():  # as where the input of the first try was not there
            write_json(where, identity)
            return False
        changed = differences(stands, json.loads(json.dumps(identity)))
        if changed:
            raise PlanMismatch(
                f"{redact(self.root)} holds a loop with other settings ({'; '.join(changed[:3])}): repeat them to go "
                "on, or choose another OUTPUT"
            )
        return True

    def _has_begun(self) -> bool:
        """Whether a step has left something, here or where the datasets go."""
        return _exists(self.round(1)) or _exists(join(self.masks(1), PLAN_FILE))

    def round(self, number: int) -> str:
        return join(self.root, f"round-{number}")

    def masks(self, number: int) -> str:
        """The dataset of a round."""
        return join(self._datasets, f"round-{number}", "masks")

    def training(self, number: int) -> str:
        return join(self.round(number), "training")

    def weights(self, number: int) -> str | None:
        """The weights that a round's training ended with; None while it has not."""
        folder = self.training(number)
        return join(folder, WEIGHTS) if {WEIGHTS, CARD} <= set(list_names(folder)) else None

    def of_round(self, number: int, name: str) -> str:
        """A file of a round; 0: of what is before the first."""
        return join(self.round(number) if number else self.root, name)


def read_json(uri: str) -> dict[str, Any] | None:
    """None where there is no file. Raises DatasetError for one that is no JSON object."""
    try:
        content = json.loads(read_bytes(uri))
    except FileNotFoundError:
        return None
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise DatasetError(f"{redact(uri)} is damaged: remove it to do that step again")
    return content


def write_json(uri: str, content: Any) -> None:
    write_text(uri, json.dumps(content, indent=1) + "\n")


def write_text(uri: str, text: str) -> None:
    """A kill leaves the old file or the new one."""
    put(uri, text.encode())


def _exists(uri: str) -> bool:
    fs, path = filesystem(uri)

    def ask() -> bool:
        with translated(uri):
            return bool(fs.exists(path))

    return retried(ask, ONCE if is_local(uri) else PATIENT)
