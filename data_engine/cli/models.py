"""`data-engine models`."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table

from data_engine.cli.app import app, out
from data_engine.errors import UsageError

models_app = typer.Typer(help="Known models: list them, fetch one.", invoke_without_command=True)
app.add_typer(models_app, name="models")


@models_app.callback()
def models(context: typer.Context) -> None:
    """List the known models when called without a command."""
    if context.invoked_subcommand is None:
        list_models()


@models_app.command("list")
def list_models() -> None:
    """The models that can be used by name."""
    from data_engine.sam.checkpoints import cached_path, registry

    table = Table(box=None, pad_edge=False)
    for column in ("name", "size", "licence", "here", "what it is"):
        table.add_column(column)
    for checkpoint in registry().values():
        here = "yes" if cached_path(checkpoint).exists() else "no"
        table.add_row(
            checkpoint.name, f"{checkpoint.size / 1e6:,.0f} MB", checkpoint.licence, here, checkpoint.description
        )
    out.print(table)


@models_app.command("fetch")
def fetch_model(name: Annotated[str, typer.Argument(help="A name from `models list`.")]) -> None:
    """Download a model now, verified, so that a job need not."""
    from data_engine.sam.checkpoints import registry, resolve

    if name not in registry():
        raise UsageError(f"no model {name!r}: known are {', '.join(registry())}")
    out.print(str(resolve(name)[1]), soft_wrap=True)
