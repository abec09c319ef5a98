"""Which room may use which: the model, the masks, the images and the dataset stand on their own.

Each can then be used, tested and replaced without the pipeline, a cluster or the command line.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "data_engine"
MAY_USE = {
    "sam": set(),
    "masks": {"sam"},
    "images": set(),
    "dataset": set(),
    "evaluation": {"sam", "masks", "images", "dataset"},
}
ABOVE = {
    "pipeline",
    "cli",
    "train",
    "loop",
    "jobs",
    "bench",
    "dedup",
    "replay",
    "report",
    "sql",
    "viewer",
    "human_audit",
    "corrections",
}
FOREIGN = {"ray", "typer"}


def imported(path: Path) -> Iterator[str]:
    """Every module a file imports anywhere, functions included, by absolute name."""
    package = ("data_engine", *path.relative_to(PACKAGE).parent.parts)
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(filter(None, (base, node.module)))
            yield from (f"{module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("room", MAY_USE)
def test_rooms_use_only_what_they_may(room):
    forbidden = (set(MAY_USE) | ABOVE) - MAY_USE[room] - {room}
    files = sorted((PACKAGE / room).rglob("*.py"))
    assert files
    for path in files:
        for module in imported(path):
            first, *rest = module.split(".")
            assert first not in FOREIGN, f"{path.name} imports {module}"
            assert first != "data_engine" or rest[0] not in forbidden, f"{path.name} imports {module}"


def test_the_reader_of_imports_sees_every_form(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "PACKAGE", tmp_path)
    (tmp_path / "masks").mkdir()
    path = tmp_path / "masks" / "x.py"
    path.write_text(
        "import ray.data as r\nfrom .. import cli\nfrom .rle import a\ndef f():\n    from data_engine import images\n"
    )
    assert list(imported(path)) == [
        "ray.data",
        "data_engine.cli",
        "data_engine.masks.rle.a",
        "data_engine.images",
    ]


@pytest.mark.parametrize("room", MAY_USE)
def test_importing_a_room_loads_nothing_above_it(room):
    modules = [
        ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
        for path in sorted((PACKAGE / room).rglob("*.py"))
        if path.stem not in ("__init__", "__main__")
    ]
    code = f"import sys, {', '.join(modules)}; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert modules[0] in loaded
    forbidden = FOREIGN | {f"data_engine.{name}" for name in (set(MAY_USE) | ABOVE) - MAY_USE[room] - {room}}
    assert not forbidden & set(loaded)
