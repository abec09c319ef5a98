"""Reading `TrainingSettings`: a YAML file, then overrides such as "train.steps=500"."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from data_engine.config import parse_yaml
from data_engine.errors import ConfigError
from data_engine.train.supervised.settings import TrainingSettings


def load_settings(source: str | Path | None = None, overrides: Iterable[str] = ()) -> TrainingSettings:
    """Raises ConfigError naming the file, the key, the value and, for an unknown key, the nearest known one."""
    values = _read(Path(source).expanduser()) if source is not None else {}
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator or not key.strip():
            raise ConfigError(f"--set {override!r}: write it as section.setting=value")
        _put(values, key.strip().split("."), parse_yaml(text, f"--set {override!r}"), override)
    try:
        return TrainingSettings.model_validate(values)
    except ValidationError as error:
        problems = "; ".join(_explain(problem) for problem in error.errors())
        raise ConfigError(f"{source or 'training settings'}: {problems}") from None


def _read(path: Path) -> dict[str, Any]:
    try:
        values = parse_yaml(path.read_text(encoding="utf-8"), str(path))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}; give the path of a YAML file") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: byte {error.start:,} is not UTF-8 text; save it as UTF-8") from None
    if not isinstance(values, dict | None):
        raise ConfigError(f"{path}: expected sections such as 'model:' and 'train:', found {type(values).__name__}")
    return values or {}


def _put(values: dict[str, Any], path: list[str], value: Any, override: str) -> None:
    for key in path[:-1]:
        inner = values.setdefault(key, {})
        if inner is None:
            inner = values[key] = {}
        if not isinstance(inner, dict):
            raise ConfigError(f"--set {override!r}: {key!r} is a value, not a section")
        values = inner
    values[path[-1]] = value


def _explain(problem: Any) -> str:
    location = [str(part) for part in problem["loc"]]
    name = ".".join(location)
    if problem["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        guess = difflib.get_close_matches(location[-1], _known_keys(location[:-1]), n=1)
        return f"unknown setting {name!r}" + (f"; did you mean {guess[0]!r}?" if guess else "")
    message = problem["msg"].removeprefix("Value error, ")
    value = "" if isinstance(problem["input"], dict) else f" (it is {problem['input']!r})"
    return f"{name}: {message}{value}" if name else message


def _known_keys(section: list[str]) -> list[str]:
    kind: Any = TrainingSettings
    for name in section:
        field = getattr(kind, "model_fields", {}).get(name)
        kind = field.annotation if field else None
    return list(getattr(kind, "model_fields", None) or getattr(kind, "__dataclass_fields__", {}))
