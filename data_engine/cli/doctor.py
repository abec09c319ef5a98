"""`data-engine doctor`."""

from __future__ import annotations

from typing import Annotated

import typer

from data_engine.cli.app import app, say


@app.command()
def doctor(
    output: Annotated[str | None, typer.Argument(metavar="[OUTPUT]", help="A store to check as well.")] = None,
    model: Annotated[str, typer.Option(help="The model to load and time.")] = "starter",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    single_writer: Annotated[
        bool, typer.Option("--single-writer", help="As run.single_writer=true: do without conditional writes.")
    ] = False,
) -> None:
    """Check this machine, a model and a store before a long job. Exit code 1 if something must be put right."""
    from data_engine.pipeline.doctor import examine

    healthy = True
    for finding in examine(output, model, device, single_writer):
        say(*(("✓", "green") if finding.ok else ("✗", "red")), f"{finding.subject:12} {finding.text}")
        healthy &= finding.ok
    if not healthy:
        raise typer.Exit(1)
