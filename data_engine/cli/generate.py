"""`data-engine generate`."""

from __future__ import annotations

import json
import sys
from enum import Enum
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from data_engine.cli.app import OutputArgument, SetOption, app, err, out, say
from data_engine.errors import UsageError
from data_engine.storage import is_local, local_path, redact

if TYPE_CHECKING:
    from data_engine.config import JobConfig
    from data_engine.pipeline.plan import JobPlan


class Engine(str, Enum):
    local = "local"
    ray = "ray"


@app.command(
    epilog="Examples:\n\n"
    "data-engine generate photos/ masks/\n\n"
    "data-engine generate 's3://bucket/sa_{000000..000999}.tar' s3://bucket/masks --config sa1b\n\n"
    "data-engine generate photos/ masks/ --set masks.points_per_side=64 --dry-run\n\n"
    "data-engine generate s3://bucket/in s3://bucket/masks --config sa1b --dry-run --calibrate 32 --price-per-hour 2.5"
    "\n\ndata-engine generate s3://bucket/in s3://bucket/masks --config sa1b --engine ray"
)
def generate(
    input: Annotated[
        str,
        typer.Argument(
            metavar="INPUT",
            help="Images: a folder, glob, manifest (.txt, .csv, .parquet), tar(s) or Parquet; local or an fsspec URL.",
        ),
    ],
    output: OutputArgument,
    config: Annotated[str | None, typer.Option(help="A preset (see `config list`) or a YAML file.")] = None,
    model: Annotated[str | None, typer.Option(help="A known model (see `models`) or a checkpoint file.")] = None,
    engine: Annotated[Engine | None, typer.Option(help="What runs the job.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:N.")] = None,
    set_: SetOption = None,
    limit: Annotated[int | None, typer.Option(help="Only the first so many images.", min=1)] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be done; write nothing.")] = False,
    calibrate: Annotated[
        int | None, typer.Option(min=1, help="With --dry-run: mask so many images here, and estimate the whole job.")
    ] = None,
    price_per_hour: Annotated[
        float | None, typer.Option(min=0, help="With --calibrate: what an hour of a device like this one costs.")
    ] = None,
) -> None:
    """Mask every image of INPUT into the dataset OUTPUT. The same command again resumes.

    Exit codes: 0 every image is masked, 3 finished but images failed, 1 the job failed, 2 wrong usage, 130 stopped.
    """
    from data_engine.config import load_config

    if not dry_run and (calibrate is not None or price_per_hour is not None):
        raise UsageError("--calibrate and --price-per-hour go with --dry-run")
    if price_per_hour is not None and calibrate is None:
        raise UsageError("--price-per-hour goes with --calibrate: a price needs the time that a sample takes")
    overrides = [f"model.name={json.dumps(model)}"] if model else []
    overrides += [f"run.device={device}"] if device else []
    overrides += [f"run.engine={engine.value}"] if engine else []
    settings = load_config(config, overrides + (set_ or []))
    if dry_run:
        plan = _dry_run(input, output, settings, limit)
        if calibrate is not None:
            _calibrate(plan, output, settings, calibrate, price_per_hour)
        out.print("Nothing was written.")
        return
    if settings.model.name == "starter":
        err.print(
            "The model is `starter`: small, for trying things out, not for real datasets. "
            "See docs/starter-model.md; for real masks add --model sam_vit_h",
            style="yellow",
        )
    from data_engine.pipeline.job import generate as run_job
    from data_engine.pipeline.progress import Progress

    progress = Progress.console()
    try:
        report = run_job(input, output, settings, limit=limit, progress=progress)
    finally:
        progress.stop()
    if report.failed_shards and not report.interrupted:
        err.print("Some shards could not be read; the same command tries them again.")
    out.print(f"{output}: {report.totals.images:,} images, {report.totals.masks:,} masks", soft_wrap=True)
    raise typer.Exit(report.exit_code)


def _dry_run(input_uri: str, output: str, settings: JobConfig, limit: int | None) -> JobPlan:
    from rich.filesize import decimal

    from data_engine.pipeline.job import expected_plan

    warnings: list[str] = []
    plan, stands = expected_plan(input_uri, output, settings, limit, warnings.append)
    say("input  ", "bold", plan.input)
    known = f"{plan.images:,} images" if plan.images is not None else "images not counted yet"
    out.print(f"        {len(plan.shards):,} shards, {known}, {decimal(plan.bytes)}")
    for reason, count in plan.skipped.items():
        out.print(f"        {count:,} left out: {reason}")
    for warning in warnings:
        out.print(f"        {redact(warning)}", soft_wrap=True)
    say("output ", "bold", f"{output} ({_state_of(output) if stands else 'new'})")
    say("model  ", "bold", f"{plan.model_name} (sha256 {plan.model_sha256})")
    out.print("config", style="bold")
    sys.stdout.write(redact(settings.to_yaml()))
    return plan


def _state_of(output: str) -> str:
    from data_engine.dataset.reader import MaskDataset

    dataset = MaskDataset(output)
    if dataset.complete:
        return "holds this job, complete: nothing is left to do"
    return f"holds this job already: it would be resumed after {dataset.totals.images:,} images"


def _calibrate(plan: JobPlan, output: str, settings: JobConfig, count: int, price_per_hour: float | None) -> None:
    from rich.filesize import decimal

    from data_engine.pipeline.calibrate import Estimate, calibrate
    from data_engine.pipeline.commit import free_bytes
    from data_engine.pipeline.progress import duration

    with err.status(f"masking {count} images to measure"):
        sample = calibrate(plan, settings, count)
    estimate = Estimate.of(plan, sample, price_per_hour)
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="dim")
    table.add_column()
    spread = f"± {sample.error:.0%}" if sample.sampled > 1 else "from one image: take more"
    failed = f", {sample.failed} failed" if sample.failed else ""
    table.add_row("measured", f"{sample.sampled} images on {sample.device}{failed}")
    table.add_row("model", f"{sample.seconds_an_image:.3g} s an image {spread}, {sample.masks:.1f} masks an image")
    table.add_row("decode", f"{estimate.decode_cores:.1f} cores keep a device busy")
    table.add_row("images", f"{estimate.images:,}" + ("" if estimate.images_are_counted else " (from their bytes)"))
    table.add_row("masks", f"{estimate.masks:,}")
    free = f", {decimal(free_bytes(local_path(output)))} free there" if is_local(output) else ""
    table.add_row("output", decimal(estimate.output_bytes) + free)
    table.add_row("time", f"{duration(3600 * estimate.hours)} on one device, {estimate.hours:,.2f} device-hours")
    if estimate.cost is not None:
        table.add_row("cost", f"{estimate.cost:,.2f} at {price_per_hour:g} an hour")
    out.print(table)
