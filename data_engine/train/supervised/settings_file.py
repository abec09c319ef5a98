"""Reading `TrainingSettings`: a YAML file, then overrides such as "train.steps=500"."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from data_engine.train.supervised.settings import TrainingSettings
from data_engine.yaml_settings import checked, overridden, read_settings


def load_settings(source: str | Path | None = None, overrides: Iterable[str] = ()) -> TrainingSettings:
    """Raises ConfigError naming the file, the key, the value and, for an unknown key, the nearest known one."""
    values = read_settings(Path(source).expanduser()) if source is not None else {}
    return checked(TrainingSettings, overridden(values, overrides), str(source or "training settings"))
