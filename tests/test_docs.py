"""The documentation is finished, its links lead somewhere, and its commands are ones that the parser takes."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import typer

from data_engine.cli import app
from data_engine.config import JobConfig

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "SECURITY.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
PLACEHOLDER = re.compile(r"\b[A-Z]+(?:_[A-Z]+)*_(?:TABLE|LINE|FIGURES?|NUMBERS?|HERE)\b|\b(?:TODO|FIXME|TBD|XXX)\b")
LINK = re.compile(r"\]\(([^)\s]+)\)")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_nothing_waits_to_be_filled_in(page):
    assert PLACEHOLDER.findall(page.read_text()) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_to_files_lead_to_files(page):
    targets = [link.partition("#")[0] for link in LINK.findall(page.read_text()) if "://" not in link]
    assert [target for target in targets if target and not (page.parent / target).exists()] == []


def test_every_setting_of_a_job_is_described():
    words = set(re.findall(r"\w+", " ".join(page.read_text() for page in PAGES)))
    settings = {f"{section}.{name}" for section, values in JobConfig().model_dump().items() for name in values}
    settings |= {f"run.ray.{name}" for name in JobConfig().run.ray.model_dump()}
    assert sorted(setting for setting in settings if setting.rpartition(".")[2] not in words) == []


def test_every_room_of_the_package_is_in_the_architecture():
    page = (ROOT / "docs/architecture.md").read_text()
    rooms = {f"{path.parent.name}/" for path in (ROOT / "data_engine").glob("*/__init__.py")}
    files = {path.name for path in (ROOT / "data_engine").glob("*.py")} - {"__init__.py"}
    assert {"sam/", "corrections/"} <= rooms
    assert sorted(name for name in rooms | files if f"`{name}`" not in page) == []


def test_every_type_of_failure_is_described():
    code = "\n".join(
        path.read_text() for room in ("images", "pipeline") for path in (ROOT / "data_engine" / room).glob("*.py")
    )
    described = set(re.findall(r"^\| `(\w+)` \|", (ROOT / "docs/bad-inputs.md").read_text(), re.MULTILINE))
    found = set(re.findall(r"\b(?:ImageError|Failure|kind)\(\s*\"(\w+)\"", code))
    assert {"corrupt", "unreadable", "worker_died"} <= found
    assert found <= described


def commands() -> Iterator[tuple[str, ...]]:
    """The arguments of every data-engine command in the fenced blocks of the pages, each once."""
    found: dict[tuple[str, ...], None] = {}
    for page in PAGES:
        for block in re.findall(r"^```[^\n]*\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL):
            for line in block.replace("\\\n", " ").splitlines():
                line = line.strip().removeprefix("$ ").removeprefix("time ")
                if line.startswith("data-engine ") and "[--" not in line:  # brackets: a synopsis
                    found[tuple(shlex.split(line, comments=True)[1:])] = None
    yield from found


def parse(command: typer.core.TyperCommand, words: Sequence[str]) -> None:
    """Parses as the command line would, runs nothing."""
    context = command.make_context(command.name, list(words))
    if isinstance(command, typer.core.TyperGroup) and context._protected_args:
        name, inner, rest = command.resolve_command(context, [*context._protected_args, *context.args])
        assert inner is not None, name
        parse(inner, rest)


def test_the_pages_show_commands():
    assert len(list(commands())) >= 50


@pytest.mark.parametrize("words", commands(), ids=shlex.join)
def test_commands_of_the_pages_are_accepted(words):
    parse(typer.main.get_command(app), words)


@pytest.mark.parametrize(
    "words", [["generate", "photos"], ["audit", "masks", "--repair"], ["frobnicate"]], ids=shlex.join
)
def test_the_parser_refuses_what_is_wrong(words):
    with pytest.raises(Exception, match=r"Missing |No such option|No such command"):
        parse(typer.main.get_command(app), words)
