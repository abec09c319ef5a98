"""The `data-engine` command: parses, calls, prints. What it prints on stdout is the result, progress goes to stderr."""

from __future__ import annotations

import io
import json
import os
import sys
import traceback
from contextlib import suppress
from enum import Enum
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from data_engine import __version__
from data_engine.errors import DataEngineError, DatasetError, UsageError
from data_engine.storage import redact

if TYPE_CHECKING:
    from data_engine.config import JobConfig
    from data_engine.pipeline.plan import JobPlan

app = typer.Typer(
    name="data-engine",
    help="A bucket of photographs in, a dataset of masks out.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
# Paths and ids are printed as they are: [red] and :cat: in them are no markup.
out = Console(highlight=False, markup=False, emoji=False)
err = Console(stderr=True, highlight=False, markup=False, emoji=False)

STOPPED = 130  # exit code, as a shell gives it for SIGINT

OutputArgument = Annotated[str, typer.Argument(metavar="OUTPUT", help="The dataset: a folder or an fsspec URL.")]


class Engine(str, Enum):
    local = "local"
    ray = "ray"


class ExportFormat(str, Enum):
    sa1b = "sa1b"
    overlays = "overlays"


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
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="One setting, e.g. masks.points_per_side=64.")
    ] = None,
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
    from data_engine.pipeline.job import generate as run_job
    from data_engine.pipeline.progress import Progress

    overrides = [f"model.name={json.dumps(model)}"] if model else []
    overrides += [f"run.device={device}"] if device else []
    overrides += [f"run.engine={engine.value}"] if engine else []
    settings = load_config(config, overrides + (set_ or []))
    if dry_run:
        plan = _dry_run(input, output, settings, limit)
        if calibrate is not None:
            _calibrate(plan, settings, calibrate, price_per_hour)
        out.print("Nothing was written.")
        return
    if calibrate is not None or price_per_hour is not None:
        raise UsageError("--calibrate and --price-per-hour go with --dry-run")
    if settings.model.name == "starter":
        err.print(
            "The model is `starter`: small, for trying things out, not for real datasets. "
            "See docs/starter-model.md; for real masks add --model sam_vit_h",
            style="yellow",
        )
    progress = Progress.console()
    try:
        report = run_job(input, output, settings, limit=limit, progress=progress)
    finally:
        progress.stop()
    if report.interrupted:
        _say_how_to_go_on()
    elif report.failed_shards:
        err.print("Some shards could not be read; the same command tries them again.")
    out.print(f"{output}: {report.totals.images:,} images, {report.totals.masks:,} masks", soft_wrap=True)
    raise typer.Exit(report.exit_code)


@app.command()
def status(output: OutputArgument) -> None:
    """How far a dataset is, from its files alone."""
    from data_engine.dataset.reader import MaskDataset
    from data_engine.pipeline.plan import read_plan, remaining
    from data_engine.pipeline.progress import summary_table

    plan = read_plan(output)
    if plan is None:
        raise DatasetError(f"no dataset at {output}: it has no _plan/job.json")
    dataset = MaskDataset(output)
    left = remaining(plan, dataset.commits)
    total = plan.images
    table = summary_table(dataset.totals)
    table.columns[1].overflow = "fold"  # a path that is cut off is no help
    table.add_row("shards", f"{len(plan.shards) - len(left):,} of {len(plan.shards):,} done")
    if total:
        table.add_row("progress", f"{dataset.totals.images / total:.1%} of {total:,} images")
    table.add_row("model", f"{plan.model_name} ({plan.model_sha256[:12]})")
    table.add_row("input", plan.input)
    table.add_row("dataset", "complete" if dataset.complete else "not complete: the generate command goes on")
    out.print(table)


@app.command()
def audit(output: OutputArgument) -> None:
    """Prove from the files alone that nothing is lost, doubled or damaged. Exit code 0 only if so."""
    from data_engine.dataset.audit import PlannedCount
    from data_engine.dataset.audit import audit as run_audit
    from data_engine.dataset.reader import MaskDataset
    from data_engine.pipeline.plan import read_plan

    plan = read_plan(output)
    if plan is None:
        raise DatasetError(f"no dataset at {output}: it has no _plan/job.json")
    dataset = MaskDataset(output)
    planned = [PlannedCount(shard.id, shard.images) for shard in plan.shards]
    with err.status("auditing") as spinner:
        done = 0

        def on_slice(record: Any) -> None:
            nonlocal done
            done += record.totals.images
            spinner.update(f"auditing: {done:,} of {len(dataset):,} images")

        report = run_audit(dataset, planned, plan.fingerprint, on_slice)
    for finding in report.findings:
        _say("✗", "red", finding)
    if report.more_findings:
        _say("✗", "red", f"and {report.more_findings:,} more")
    totals = report.totals
    facts = f"{totals.images:,} images, {totals.masks:,} masks, {report.shards:,} shards, {report.slices:,} commits"
    if report.damaged_shards:
        out.print(f"note: {report.damaged_shards} input shards were damaged and end early")
    if report.unreferenced:
        out.print(f"note: {report.unreferenced} files of interrupted attempts are not referenced (harmless)")
    if not report.ok:
        _say("audit failed:", "red", f"{facts}, {len(report.findings) + report.more_findings:,} findings")
        raise typer.Exit(1)
    _say("✓", "green", f"audit passed: {facts}")


@app.command(
    epilog="Examples:\n\ndata-engine export masks/ sa1b/ --format sa1b --images-per-tar 10000\n\n"
    "data-engine export masks/ pictures/ --format overlays --limit 20"
)
def export(
    output: OutputArgument,
    destination: Annotated[str, typer.Argument(metavar="DEST", help="Where to write: a folder or an fsspec URL.")],
    format: Annotated[ExportFormat, typer.Option(help="sa1b: SA-1B's jpg and json; overlays: pictures to look at.")],
    images_per_tar: Annotated[
        int | None, typer.Option(min=1, help="sa1b: tars of so many images (default: a plain folder).")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many images.")] = None,
    input: Annotated[
        str | None, typer.Option(help="The INPUT of the dataset, signed anew, where it was a signed link.")
    ] = None,
) -> None:
    """Write the dataset OUTPUT in another format. Reads the original images again."""
    from itertools import islice

    from rich.progress import Progress

    from data_engine.dataset.export.sa1b import export_sa1b
    from data_engine.dataset.reader import MaskDataset
    from data_engine.images.decode import decode, is_plain_jpeg
    from data_engine.pipeline.originals import input_settings, relinked, with_originals
    from data_engine.pipeline.pictures import write_overlays
    from data_engine.pipeline.plan import read_plan

    plan = read_plan(output)
    if plan is None:
        raise DatasetError(f"no dataset at {output}: it has no _plan/job.json")
    dataset = MaskDataset(output)
    settings = input_settings(plan)
    count = min(limit or len(dataset), len(dataset))
    originals = islice(with_originals(dataset, relinked(plan, input)), count)
    with Progress(console=err, transient=True) as bar:
        images = bar.track(originals, total=count, description="exporting")
        if format is ExportFormat.overlays:
            written = write_overlays(images, destination, settings)
        else:
            report = export_sa1b(
                images,
                destination,
                lambda data: decode(data, settings),
                is_plain_jpeg,
                images_per_tar=images_per_tar,
            )
    if format is ExportFormat.overlays:
        out.print(f"{destination}: {written} pictures", soft_wrap=True)
        return
    out.print(
        f"{destination}: {report.images:,} images, {report.masks:,} masks in {report.files:,} files", soft_wrap=True
    )
    for left_out, reason in (
        (report.failed, "failed when they were masked"),
        (report.without_masks, "have no masks"),
        (report.too_large, "have more pixels a side than a JPEG can"),
        (report.missing, "could not be read again, or have changed since"),
    ):
        if left_out:
            out.print(f"left out: {left_out:,} images that {reason}")
    if report.missing:
        raise typer.Exit(3)


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


config_app = typer.Typer(help="Presets and settings.", no_args_is_help=True)
app.add_typer(config_app, name="config")


@config_app.command("list")
def list_presets() -> None:
    """The presets, and what each is for."""
    from data_engine.config import presets

    for name, path in presets().items():
        comment = [line.lstrip("# ") for line in path.read_text().splitlines() if line.startswith("#")]
        _say(f"{name:12}", "bold", comment[0] if comment else "")


@config_app.command("show")
def show_config(
    config: Annotated[str | None, typer.Argument(help="A preset or a YAML file.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="One setting.")] = None,
) -> None:
    """Every setting of a configuration, resolved, as YAML: a file to start from."""
    from data_engine.config import load_config

    sys.stdout.write(load_config(config, set_ or []).to_yaml())


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
        _say(*(("✓", "green") if finding.ok else ("✗", "red")), f"{finding.subject:12} {finding.text}")
        healthy &= finding.ok
    if not healthy:
        raise typer.Exit(1)


@app.command(
    epilog="Example:\n\ndata-engine bench s3://bucket/in --cluster 1,2,4,8 --scratch s3://bucket/scratch --images 800"
)
def bench(
    input: Annotated[str, typer.Argument(metavar="INPUT", help="Images, as for generate.")],
    cluster: Annotated[str, typer.Option(metavar="N,N,…", help="Numbers of workers to measure, e.g. 1,2,4.")],
    scratch: Annotated[str, typer.Option(help="Where the datasets go that this makes; all nodes must reach it.")],
    images: Annotated[int, typer.Option(min=2, help="Images to mask with each number of workers.")] = 200,
    config: Annotated[str | None, typer.Option(help="A preset or a YAML file.")] = None,
    model: Annotated[str | None, typer.Option(help="A known model or a checkpoint file.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="One setting.")] = None,
) -> None:
    """Measure how images per second grow with the workers of a Ray cluster."""
    from data_engine.config import load_config
    from data_engine.pipeline.scaling import measure_scaling

    try:
        counts = [int(number) for number in cluster.split(",")]
    except ValueError:
        raise UsageError(f"--cluster {cluster!r}: write numbers of workers such as 1,2,4") from None
    settings = load_config(config, ([f"model.name={json.dumps(model)}"] if model else []) + (set_ or []))
    table = Table(box=None, pad_edge=False)
    for column in ("workers", "images/s", "efficiency", "start"):
        table.add_column(column, justify="right")
    for point in measure_scaling(input, scratch, settings, counts, images):
        err.print(f"{point.workers} workers: {point.images_per_second:.2f} images/s")
        table.add_row(
            str(point.workers),
            f"{point.images_per_second:.2f}",
            f"{point.efficiency:.0%}",
            f"{point.start_seconds:.1f} s",
        )
    out.print(table)


def _dry_run(input_uri: str, output: str, settings: JobConfig, limit: int | None) -> JobPlan:
    from rich.filesize import decimal

    from data_engine.pipeline.plan import make_plan, read_plan

    plan = make_plan(input_uri, settings, limit)
    stands = read_plan(output)
    _say("input  ", "bold", plan.input)
    known = f"{plan.images:,} images" if plan.images is not None else "images not counted yet"
    out.print(f"        {len(plan.shards):,} shards, {known}, {decimal(plan.bytes)}")
    for reason, count in plan.skipped.items():
        out.print(f"        {count:,} left out: {reason}")
    for warning in plan.warnings:
        out.print(f"        warning: {warning}", soft_wrap=True)
    if stands is None:
        state = "new"
    else:
        stands.refuse_unless_same(plan, output)
        state = "holds this job already: it would be resumed"
    _say("output ", "bold", f"{output} ({state})")
    _say("model  ", "bold", f"{plan.model_name} (sha256 {plan.model_sha256})")
    out.print("config", style="bold")
    sys.stdout.write(redact(settings.to_yaml()))
    return plan


def _calibrate(plan: JobPlan, settings: JobConfig, count: int, price_per_hour: float | None) -> None:
    from rich.filesize import decimal

    from data_engine.pipeline.calibrate import Estimate, calibrate
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
    table.add_row("output", decimal(estimate.output_bytes))
    table.add_row("time", f"{duration(3600 * estimate.hours)} on one device, {estimate.hours:,.2f} device-hours")
    if estimate.cost is not None:
        table.add_row("cost", f"{estimate.cost:,.2f} at {price_per_hour:g} an hour")
    out.print(table)


def _say(mark: str, style: str, text: str) -> None:
    out.print(Text.assemble((mark, style), " ", text), soft_wrap=True)


def _say_how_to_go_on() -> None:
    """The command to run again, without the secrets of signed links."""
    import shlex

    from data_engine.signed_urls import unsigned

    given = sys.argv[1:]
    shown = [redact(unsigned(argument)) for argument in given]
    err.print("Stopped. What is committed is safe; the same command goes on:", soft_wrap=True)
    err.print(f"  {shlex.join(['data-engine', *shown])}", soft_wrap=True)
    if shown != given:
        err.print("  (with its links signed, anew if they have expired)", soft_wrap=True)


def main() -> None:
    """Entry point: turns errors into one line and an exit code."""
    debug = "--debug" in sys.argv
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a file's name need not be text
    try:
        code = app(standalone_mode=False) or 0  # the code of a typer.Exit
    except (KeyboardInterrupt, typer.Abort):
        _say_how_to_go_on()
        code = STOPPED
    except DataEngineError as error:
        if debug:
            _print_traceback(error)
        else:
            err.print(Text.assemble(("error:", "red"), " ", redact(str(error))), soft_wrap=True)
        code = 2 if isinstance(error, UsageError) else 1
    except Exception as error:
        code = _click_error(error)
        if code is None:
            _print_traceback(error)
            code = 1
    with suppress(BrokenPipeError):
        sys.stdout.flush()
    if code == STOPPED:
        os._exit(code)  # without waiting for threads that read from a store that has stopped sending
    sys.exit(code)


def _print_traceback(error: Exception) -> None:
    """As the interpreter does, but for the secrets that messages of libraries carry."""
    sys.stderr.write(redact("".join(traceback.format_exception(error))))


def _click_error(error: Exception) -> int | None:
    """Click's own usage errors know how to show themselves. Typer carries a click of its own, without a public name."""
    if hasattr(error, "show") and hasattr(error, "exit_code"):
        error.show()
        return int(error.exit_code)
    return None


if __name__ == "__main__":
    main()
