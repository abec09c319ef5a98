"""`data-engine config`."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from data_engine.cli.app import SetOption, app, say

config_app = typer.Typer(help="Presets and settings.", no_args_is_help=True)
app.add_typer(config_app, name="config")


@config_app.command("list")
def list_presets() -> None:
    """The presets, and what each is for."""
    from data_engine.config import presets

    for name, path in presets().items():
        comment = [line.lstrip("# ") for line in path.read_text().splitlines() if line.startswith("#")]
        say(f"{name:12}", "bold", comment[0] if comment else "")


@config_app.command("show")
def show_config(
    config: Annotated[str | None, typer.Argument(help="A preset or a YAML file.")] = None,
    set_: SetOption = None,
) -> None:
    """Every setting of a configuration, resolved, as YAML: a file to start from."""
    from data_engine.config import load_config

    sys.stdout.write(load_config(config, set_ or []).to_yaml())
