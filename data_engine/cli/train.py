"""`data-engine train`."""

from __future__ import annotations

import json
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from data_engine.cli.app import SetOption, app, err, out
from data_engine.storage import redact

if TYPE_CHECKING:
    from data_engine.train.supervised.settings import TrainingSettings

_FIGURES = ("loss", "focal", "dice", "first_iou", "last_iou")


@app.command(
    epilog="Examples:\n\n"
    "data-engine train --model sam_vit_b --data coco:train.json@train2017 --validation coco:val.json@val2017 "
    "--output run\n\n"
    "data-engine train --config configs/finetune.yaml --data idmaps:images@segments --output run\n\n"
    "data-engine train --model sam_vit_l --data dataset:masks --set 'model.lora={rank: 8}' --output run\n\n"
    "data-engine train --model sam_vit_b --data dataset:s3://bucket/masks --output s3://bucket/run --workers 8\n\n"
    "data-engine generate photos/ masks/ --config reference --set model.name=run/model.safetensors"
)
def train(
    data: Annotated[
        str, typer.Option(metavar="SPEC", help="What to train on, such as dataset:PATH or coco:JSON@IMAGES.")
    ],
    output: Annotated[
        str,
        typer.Option(
            metavar="FOLDER_OR_URL", help="Where weights, state and logs go, such as s3://bucket/run; the same resumes."
        ),
    ],
    config: Annotated[Path | None, typer.Option(metavar="FILE", help="A YAML file of settings.")] = None,
    model: Annotated[
        str | None, typer.Option(help="Where to start: a known model (see `models`) or a checkpoint file.")
    ] = None,
    validation: Annotated[
        str | None, typer.Option(metavar="SPEC", help="Held-out images to measure on, as in --data.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:N.")] = None,
    workers: Annotated[
        int,
        typer.Option(min=1, help="Train with so many workers through Ray Train, on the cluster of run.ray.address."),
    ] = 1,
    set_: SetOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show settings and data; train nothing.")] = False,
) -> None:
    """Train a SAM on images with masks. The same command again goes on where a run was cut."""
    from data_engine.train.supervised.outputs import check_output, train_into
    from data_engine.train.supervised.run import open_sources
    from data_engine.train.supervised.settings_file import load_settings

    overrides = [f"model.name={json.dumps(model)}"] if model else []
    overrides += [f"data.validation={json.dumps(validation)}"] if validation else []
    overrides += [f"run.device={device}"] if device else []
    settings = load_settings(config, overrides + (set_ or []))
    found = check_output(output)  # what cannot be is said before anything is listed or loaded
    if dry_run:
        _show(settings, open_sources(data, settings).describe())
        out.print(f"{redact(output)}: {found}\nNothing was trained.", soft_wrap=True)
        return
    if workers > 1:
        from data_engine.train.supervised.ray_workers import train_on_ray

        weights = train_on_ray(settings, data, output, workers)
    else:
        with _Console(settings.run.log_every_steps) as console:
            weights = train_into(settings, open_sources(data, settings), output, data_name=data, watcher=console)
    _print_result(output, weights)


def _show(settings: TrainingSettings, sources: dict[str, Any]) -> None:
    import sys

    import yaml

    sys.stdout.write(yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False, allow_unicode=True))
    out.print(json.dumps(sources, indent=1), soft_wrap=True)


def _print_result(output: str, weights: str) -> None:
    from data_engine.storage import filesystem, join, read_bytes
    from data_engine.train.supervised.card import first_and_last
    from data_engine.train.supervised.log_files import VALIDATIONS, parse_lines

    validations = parse_lines(read_bytes(join(output, VALIDATIONS)).decode())
    if validations:
        out.print(_table(*first_and_last(validations)))
    fs, path = filesystem(weights)
    out.print(f"{redact(weights)}: {fs.size(path):,} bytes", soft_wrap=True)


def _table(first: dict[str, Any], last: dict[str, Any]) -> Table:
    table = Table(
        title=f"mean IoU on {last['masks']:,} masks of {last['images']:,} held-out images",
        title_justify="left",
        box=None,
        pad_edge=False,
    )
    table.add_column("")
    steps = {line["step"]: line for line in (first, last)}
    for step in steps:
        table.add_column(f"step {step:,}", justify="right")
    for count, scores in last["clicks"].items():
        for name in scores:
            values = [line["clicks"].get(count, {}).get(name) for line in steps.values()]
            label = f"{count} click{'s' * (count != '1')}: {name.replace('_', ' ')}"
            table.add_row(label, *("" if value is None else f"{value:.3f}" for value in values))
    return table


class _Console:
    """A bar of steps, a line every so many, and a line a validation, on stderr."""

    def __init__(self, every: int) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("steps"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._bar = Progress(*columns, console=err, transient=True)
        self._task = self._bar.add_task("steps", total=None)
        self._every = every

    def __enter__(self) -> _Console:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def began(self, step: int, steps: int) -> None:
        if step:
            err.print(f"going on after step {step:,}" if step < steps else f"all {steps:,} steps are done")
        self._bar.update(self._task, completed=step, total=steps)

    def stepped(self, record: dict[str, Any]) -> None:
        self._bar.update(self._task, completed=record["step"])
        if record["step"] % self._every == 0:
            figures = [f"{name.replace('_iou', ' IoU')} {_shown(record[name])}" for name in _FIGURES]
            skipped = [f"{record['skipped']} steps skipped: loss not finite"] if record["skipped"] else []
            rate = f"rate {record['learning_rate']:.1e}"
            parts = [f"step {record['step']:>6,}", f"epoch {record['epoch']}", *figures, rate, *skipped]
            err.print("  ".join(parts), soft_wrap=True)

    def validated(self, record: dict[str, Any]) -> None:
        parts = [
            f"{count} click{'s' * (count != '1')} {scores['highest_predicted_iou']:.3f} (best of three "
            f"{scores['best_of_three']:.3f})"
            for count, scores in record["clicks"].items()
        ]
        err.print(f"held out at step {record['step']:,}: mean IoU of {', '.join(parts)}", soft_wrap=True)


def _shown(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.4f}"
