"""The `data-engine` command itself, and what its commands share: where they print, how they speak."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text
from typer.core import TyperGroup

from data_engine import __version__


class InOrder(TyperGroup):
    """Commands in the order in which people meet them."""

    def list_commands(self, _: Any) -> list[str]:
        first = [
            *("generate", "status", "audit", "report", "view", "sql", "dedup", "replay", "audit-sample"),
            *("audit-report", "apply-corrections", "export", "evaluate", "train", "loop", "models", "config"),
            *("doctor", "bench"),
        ]
        return sorted(self.commands, key=lambda name: first.index(name) if name in first else len(first))


app = typer.Typer(
    cls=InOrder,
    name="data-engine",
    help="A bucket of photographs in, a dataset of masks out.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
# Paths and ids are printed as they are: [red] and :cat: in them are no markup.
out = Console(highlight=False, markup=False, emoji=False)
err = Console(stderr=True, highlight=False, markup=False, emoji=False)

OutputArgument = Annotated[str, typer.Argument(metavar="OUTPUT", help="The dataset: a folder or an fsspec URL.")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="One setting, as section.name=value.")
]


@app.callback(invoke_without_command=True)
def main_options(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks and debug messages.")] = False,
    log_json: Annotated[bool, typer.Option("--log-json", help="Log one JSON object a line.")] = False,
) -> None:
    from data_engine.pipeline.logs import configure_logging

    configure_logging("DEBUG" if debug else "WARNING", as_json=log_json)
    if version:
        out.print(__version__)
        raise typer.Exit


def say(mark: str, style: str, text: str) -> None:
    out.print(Text.assemble((mark, style), " ", text), soft_wrap=True)
