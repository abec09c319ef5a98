"""Settings of any kind, from YAML files and from overrides such as "masks.points_per_side=16"."""

from __future__ import annotations

import difflib
import re
from collections.abc import Hashable, Iterable, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from data_engine.errors import ConfigError

M = TypeVar("M", bound=BaseModel)

_MAX_FILE_BYTES = 1 << 20
_PAIR = re.compile("[\ud800-\udbff][\udc00-\udfff]")


def read_settings(path: Path) -> dict[str, Any]:
    """The plain values of a YAML file. Raises ConfigError naming the file and what is wrong with it."""
    try:
        size = path.stat().st_size
        if size > _MAX_FILE_BYTES:
            raise ConfigError(f"{path} is {size:,} bytes: that is no configuration")
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: byte {error.start:,} is not UTF-8 text; save it as UTF-8") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror}); give the path of a YAML file") from None
    values = parse_yaml(text, str(path))
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected settings such as 'model:', found {type(values).__name__}")
    return values


def overridden(values: Mapping[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """A copy with "section.setting=value" put in, each value as YAML reads it. Raises ConfigError."""
    copy = deepcopy(dict(values))
    for override in overrides:
        key, value = parse_override(override)
        _put(copy, key.split("."), value, override)
    return copy


def parse_override(override: str) -> tuple[str, Any]:
    """ "run.device=cpu" -> its two sides. Raises ConfigError."""
    key, separator, text = override.partition("=")
    if not separator or not key.strip():
        raise ConfigError(f"--set {override!r}: write it as section.setting=value")
    return key.strip(), parse_yaml(text, f"--set {override!r}")


def checked(kind: type[M], values: Mapping[str, Any], where: str) -> M:
    """Plain values -> settings of a kind.

    Raises ConfigError with every key that is wrong, its value, and for an unknown key the nearest known one.
    """
    try:
        return kind.model_validate(dict(values))
    except ValidationError as error:
        raise ConfigError(f"{where}: " + "; ".join(_explain(problem, kind) for problem in error.errors())) from None


class _StrictLoader(yaml.SafeLoader):
    """YAML without its traps: duplicate keys and aliases are errors, 1e-3 is a number, on and 12:30 are text."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - PyYAML's own interface
        first: [
            (tag, pattern) for tag, pattern in resolvers if not tag.endswith((":float", ":int", ":bool", ":timestamp"))
        ]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            raise yaml.constructor.ConstructorError(None, None, "aliases (*name) are not allowed", event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                problem = "a list or mapping cannot be a key; quote it if it is text, such as '{{name}}'"
                raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"duplicate key {key!r}", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)

    def construct_scalar(self, node: Any) -> Any:
        # JSON writes a character beyond U+FFFF as two, which YAML takes for two characters.
        text = super().construct_scalar(node)
        return _PAIR.sub(lambda pair: pair[0].encode("utf-16", "surrogatepass").decode("utf-16"), text)


def _add_resolvers() -> None:
    number = r"[-+]?(?:0|[1-9][0-9_]*)"
    patterns = {
        "int": (rf"{number}", "-+0123456789"),
        "float": (
            r"[-+]?(?:[0-9][0-9_]*)?(?:\.[0-9][0-9_]*|[0-9]\.)(?:[eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+",
            "-+.0123456789",
        ),
        "bool": (r"true|True|TRUE|false|False|FALSE", "tTfF"),
    }
    for kind, (pattern, first) in patterns.items():
        _StrictLoader.add_implicit_resolver(f"tag:yaml.org,2002:{kind}", re.compile(rf"^(?:{pattern})$"), list(first))


_add_resolvers()


def parse_yaml(text: str, where: str) -> Any:
    """YAML text -> plain values. Raises ConfigError with the line."""
    try:
        return yaml.load(text, Loader=_StrictLoader)  # noqa: S506 (a SafeLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise ConfigError(f"{where}{line}: {getattr(error, 'problem', None) or 'not YAML'}") from None


def _put(values: dict[str, Any], path: list[str], value: Any, override: str) -> None:
    for key in path[:-1]:
        if values.get(key) is None:
            values[key] = {}
        values = values[key]
        if not isinstance(values, dict):
            raise ConfigError(f"--set {override!r}: {key!r} is a value, not a section")
    values[path[-1]] = value


def _explain(problem: Any, kind: type[BaseModel]) -> str:
    location = [str(part) for part in problem["loc"]]
    name = ".".join(location)
    if problem["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        guess = difflib.get_close_matches(location[-1], _known_keys(kind, location[:-1]), n=1)
        return f"unknown setting {name!r}" + (f"; did you mean {guess[0]!r}?" if guess else "")
    message = problem["msg"].removeprefix("Value error, ")
    value = "" if isinstance(problem["input"], dict) else f" (it is {problem['input']!r})"
    return f"{name}: {message}{value}" if name else message


def _known_keys(kind: Any, section: list[str]) -> list[str]:
    for name in section:
        field = getattr(kind, "model_fields", {}).get(name)
        kind = field.annotation if field else None
    if kind is None:
        return []
    return list(getattr(kind, "model_fields", None) or getattr(kind, "__dataclass_fields__", {}))
