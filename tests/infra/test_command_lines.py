"""Every command line and setting that infra/, jobs/ and docs/cluster.md name is accepted by the command itself."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import typer
from infra_files import INFRA, PAGES, ROOT, commands, commands_of_line, read_document

from data_engine.cli import app
from data_engine.config import JobConfig, load_config
from data_engine.sam.checkpoints import registry

COMMANDS = [(str(page.relative_to(ROOT)), command) for page in PAGES for command in commands(page.read_text("utf-8"))]
RAYJOB = read_document(INFRA / "kuberay" / "rayjob.yaml")["spec"]["entrypoint"]
COMMANDS += [("infra/kuberay/rayjob.yaml", command) for command in commands_of_line(RAYJOB)]


def parameters(arguments: list[str]) -> dict[str, Any]:
    """What the parser makes of a command line, without running it. Raises a usage error."""
    command: Any = typer.main.get_command(app)
    context = command.make_context("data-engine", list(arguments), resilient_parsing=True)
    rest = list(arguments)
    while hasattr(command, "get_command") and rest:
        name = rest.pop(0)
        command = command.get_command(context, name)
        assert command is not None, f"no command {name!r}"
    return dict(command.make_context("data-engine", rest).params)


def settings_of(values: dict[str, Any]) -> list[str]:
    engine = values.get("engine")
    overrides = [f"run.engine={engine.value}"] if engine else []
    return overrides + list(values.get("set_") or [])


def test_the_pages_hold_commands() -> None:
    assert len(COMMANDS) > 20
    assert {command[0] for _, command in COMMANDS} >= {"generate", "status", "audit", "doctor", "models"}


@pytest.mark.parametrize(("where", "arguments"), COMMANDS, ids=lambda value: value if isinstance(value, str) else "")
def test_the_command_is_accepted(where: str, arguments: list[str]) -> None:
    values = parameters(arguments)
    if "set_" in values:
        load_config(values.get("config"), settings_of(values))
    model = values.get("model") or values.get("name")
    assert model is None or "://" in model or model in registry()


def test_what_is_wrong_is_refused() -> None:
    with pytest.raises(Exception, match=r"[Nn]o such option"):
        parameters(["generate", "in", "out", "--engin", "ray"])
    with pytest.raises(Exception, match="unknown setting"):
        load_config(None, settings_of(parameters(["generate", "in", "out", "--set", "run.ray.worker=3"])))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_settings_in_the_text_exist(page: Path) -> None:
    known = JobConfig().model_dump()
    for name in set(re.findall(r"`(?:--set )?(run\.[a-z_.]+)", page.read_text("utf-8"))):
        value: Any = known
        for key in name.rstrip(".").split("."):
            assert key in (value if isinstance(value, dict) else {}), f"{page.name}: no setting {name}"
            value = value[key]
