"""`data-engine loop`."""

from __future__ import annotations

import json
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from data_engine.cli.app import SetOption, app, err, out

if TYPE_CHECKING:
    from data_engine.pipeline.progress import Progress


@app.command(
    epilog="Examples:\n\n"
    "data-engine loop photos/ loop/ --held-out labelled/ --rounds 3\n\n"
    "data-engine loop photos/ loop/ --config my-loop.yaml --set training.train.steps=500\n\n"
    "data-engine loop photos/ loop/ --config with-people.yaml --set 'people=coco:corrected-{round}.json@photos'\n\n"
    "data-engine loop s3://bucket/photos s3://bucket/loop --held-out labelled/ --set generate.run.engine=ray"
)
def loop(
    input: Annotated[str, typer.Argument(metavar="INPUT", help="Photographs, as for `generate`.")],
    output: Annotated[
        str, typer.Argument(metavar="OUTPUT", help="A folder or an fsspec URL for models, datasets and the table.")
    ],
    config: Annotated[Path | None, typer.Option(metavar="FILE", help="A YAML file of settings.")] = None,
    rounds: Annotated[int | None, typer.Option(min=1, help="So many rounds in all; more than before go on.")] = None,
    model: Annotated[str | None, typer.Option(help="Where round 1 starts: a known model or a checkpoint file.")] = None,
    held_out: Annotated[
        str | None,
        typer.Option(metavar="DATA", help="Photographs with ground truth. Those that are in INPUT are left out."),
    ] = None,
    ground_truth: Annotated[
        str | None, typer.Option(metavar="FILE_OR_FOLDER", help="Where their masks are, as for `evaluate`.")
    ] = None,
    set_: SetOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the table as JSON.")] = False,
) -> None:
    """Mask INPUT, train on the masks, measure, and again. The same command goes on where it was stopped.

    Exit codes: 0 every round is done, 4 waiting for the masks of people, 130 stopped, 1 failed, 2 wrong usage.
    """
    from data_engine.loop.run import run_loop
    from data_engine.loop.settings import load_loop_settings
    from data_engine.loop.table import as_table

    named = {"rounds": rounds, "model": model, "evaluation.data": held_out, "evaluation.ground_truth": ground_truth}
    overrides = [f"{key}={json.dumps(value)}" for key, value in named.items() if value is not None]
    settings = load_loop_settings(config, [*overrides, *(set_ or [])])
    with _Console(settings.rounds) as console:
        report = run_loop(input, output, settings, console)
    if as_json:
        out.print(json.dumps(report.as_json(), indent=1), soft_wrap=True)
    else:
        out.print(as_table(report.rows))
    if report.waiting:
        err.print(f"{report.waiting}\nThe same command goes on when they are there.", soft_wrap=True)
    raise typer.Exit(report.exit_code)


class _Console:
    """Which step of which round, and how far it is, on stderr."""

    def __init__(self, rounds: int) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._rounds = rounds
        self._bar = Bar(*columns, console=err, transient=True)
        self._task: Any = None

    def __enter__(self) -> _Console:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def began(self, number: int, step: str) -> None:
        self._bar.stop()
        err.print(f"round {number} of {self._rounds}: {step}" if number else f"start: {step}")
        if self._task is not None:
            self._bar.remove_task(self._task)
        self._task = self._bar.add_task(step, total=None)
        if step in ("training", "evaluation"):
            self._bar.start()

    def advanced(self, done: int, total: int) -> None:
        self._bar.update(self._task, completed=done, total=total)

    def generation(self) -> Progress:
        from data_engine.pipeline.progress import Progress

        return Progress.console()
