"""Reading the files of infra/, jobs/ and docs/cluster.md as their users would."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
INFRA = ROOT / "infra"
PAGES = sorted([*INFRA.rglob("*.md"), ROOT / "jobs" / "README.md", ROOT / "docs" / "cluster.md"])
_NOT_OURS = {"kubectl", "helm"}  # there "data-engine" is the name of a resource
_ENDS = {";", "&&", "||", "|", "&", ")", "done"}


class _NoDuplicates(yaml.SafeLoader):
    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        repeated = {key for key in keys if keys.count(key) > 1}
        if repeated:
            raise yaml.constructor.ConstructorError(None, None, f"repeated keys {sorted(repeated)}", node.start_mark)
        return super().construct_mapping(node, deep)


def read_documents(path: Path) -> list[Any]:
    """The documents of a YAML file; a key that comes twice is an error."""
    return list(yaml.load_all(path.read_text(encoding="utf-8"), Loader=_NoDuplicates))


def read_document(path: Path) -> Any:
    (document,) = read_documents(path)
    return document


def commands(page: str) -> Iterator[list[str]]:
    """Every `data-engine` command of a Markdown page as arguments, however it is started (job, sbatch, shell)."""
    blocks = re.findall(r"^```\w*\n(.*?)^```", page, flags=re.MULTILINE | re.DOTALL)
    prose = re.sub(r"^```\w*\n.*?^```", "", page, flags=re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in re.sub(r"\\\n\s*", " ", block).splitlines()]
    for line in lines:
        yield from commands_of_line(line)
    for line in re.findall(r"`([^`\n]+)`", prose):
        yield from (command for command in commands_of_line(line) if len(command) > 1)  # else the mere name of one


def commands_of_line(line: str) -> Iterator[list[str]]:
    if "…" in line:  # an abbreviation for the reader
        return
    try:
        words = shlex.split(line, comments=True)
    except ValueError:  # a piece of a longer construct
        return
    if words and words[0] in _NOT_OURS:
        return
    for position, word in enumerate(words):
        end = next((i for i in range(position, len(words)) if words[i] in _ENDS), len(words))
        rest = words[position + 1 : end]
        if not rest:
            continue
        if word == "data-engine" and not rest[0].startswith("-"):
            yield rest
        elif word.endswith(("generate.py", "data-engine.sbatch")):
            yield ["generate", *rest, "--engine", "ray"]
        elif word.endswith("audit.py"):
            yield ["audit", *rest]
