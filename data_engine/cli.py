"""The `data-engine` command: parses, calls, prints. What it prints on stdout is the result, progress goes to stderr."""

from __future__ import annotations

import json
import logging
import sys
from contextlib import suppress
from enum import Enum
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from data_engine import __version__
from data_engine.errors import DataEngineError, DatasetError, UsageError

app = typer.Typer(
    name="data-engine",
    help="A bucket of photographs in, a dataset of masks out.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
out = Console(highlight=False)
err = Console(stderr=True, highlight=False)

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
) -> None:
    logging.basicConfig(level=logging.DEBUG if debug else logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    if version:
        out.print(__version__)
        raise typer.Exit


@app.command(
    epilog="Examples:\n\n"
    "data-engine generate photos/ masks/\n\n"
    "data-engine generate 's3://bucket/sa_{000000..000999}.tar' s3://bucket/masks --config sa1b\n\n"
    "data-engine generate photos/ masks/ --set masks.points_per_side=64 --dry-run"
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
        _dry_run(input, output, settings, limit)
        return
    if settings.model.name == "starter":
        err.print(
            "[yellow]The model is `starter`: small, for trying things out, not for real datasets. "
            "See docs/starter-model.md; for real masks add --model sam_vit_h[/yellow]"
        )
    progress = Progress.console()
    try:
        report = run_job(input, output, settings, limit=limit, progress=progress)
    finally:
        progress.stop()
    if report.interrupted:
        err.print(f"Stopped. What is committed is safe; the same command goes on:\n  {_this_command()}", soft_wrap=True)
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
        out.print(f"[red]✗[/red] {escape(finding)}", soft_wrap=True)
    if report.more_findings:
        out.print(f"[red]✗[/red] and {report.more_findings:,} more")
    totals = report.totals
    facts = f"{totals.images:,} images, {totals.masks:,} masks, {report.shards:,} shards, {report.slices:,} commits"
    if report.damaged_shards:
        out.print(f"note: {report.damaged_shards} input shards were damaged and end early")
    if report.unreferenced:
        out.print(f"note: {report.unreferenced} files of interrupted attempts are not referenced (harmless)")
    if not report.ok:
        out.print(f"[red]audit failed[/red]: {facts}, {len(report.findings) + report.more_findings:,} findings")
        raise typer.Exit(1)
    out.print(f"[green]✓[/green] audit passed: {facts}")


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
) -> None:
    """Write the dataset OUTPUT in another format. Reads the original images again."""
    from itertools import islice

    from rich.progress import track

    from data_engine.dataset.export.sa1b import export_sa1b
    from data_engine.dataset.reader import MaskDataset
    from data_engine.images.decode import decode
    from data_engine.pipeline.originals import input_settings, with_originals
    from data_engine.pipeline.pictures import write_overlays
    from data_engine.pipeline.plan import read_plan

    plan = read_plan(output)
    if plan is None:
        raise DatasetError(f"no dataset at {output}: it has no _plan/job.json")
    dataset = MaskDataset(output)
    settings = input_settings(plan)
    count = min(limit or len(dataset), len(dataset))
    images = track(islice(with_originals(dataset, plan), count), "exporting", total=count, console=err, transient=True)
    if format is ExportFormat.overlays:
        written = write_overlays(images, destination, settings)
        out.print(f"{destination}: {written} pictures", soft_wrap=True)
        return
    report = export_sa1b(images, destination, lambda data: decode(data, settings), images_per_tar=images_per_tar)
    out.print(
        f"{destination}: {report.images:,} images, {report.masks:,} masks in {report.files:,} files", soft_wrap=True
    )
    for left_out, reason in (
        (report.failed, "failed when they were masked"),
        (report.without_masks, "have no masks"),
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
        out.print(f"[bold]{name:12}[/bold] {comment[0] if comment else ''}", soft_wrap=True)


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
) -> None:
    """Check this machine, a model and a store before a long job. Exit code 1 if something must be put right."""
    from data_engine.pipeline.doctor import examine

    healthy = True
    for finding in examine(output, model, device):
        mark = "[green]✓[/green]" if finding.ok else "[red]✗[/red]"
        out.print(f"{mark} {finding.subject:12} {escape(finding.text)}", soft_wrap=True)
        healthy &= finding.ok
    if not healthy:
        raise typer.Exit(1)


def _dry_run(input_uri: str, output: str, settings: Any, limit: int | None) -> None:
    from rich.filesize import decimal

    from data_engine.pipeline.plan import make_plan, read_plan

    plan = make_plan(input_uri, settings, limit)
    stands = read_plan(output)
    out.print(f"[bold]input[/bold]   {escape(plan.input)}", soft_wrap=True)
    known = f"{plan.images:,} images" if plan.images is not None else "images not counted yet"
    out.print(f"        {len(plan.shards):,} shards, {known}, {decimal(plan.bytes)}")
    for reason, count in plan.skipped.items():
        out.print(f"        {count:,} left out: {reason}")
    for warning in plan.warnings:
        out.print(f"        warning: {escape(warning)}", soft_wrap=True)
    if stands is None:
        state = "new"
    else:
        stands.refuse_unless_same(plan, output)
        state = "holds this job already: it would be resumed"
    out.print(f"[bold]output[/bold]  {escape(output)} ({state})", soft_wrap=True)
    out.print(f"[bold]model[/bold]   {escape(plan.model_name)} (sha256 {plan.model_sha256})", soft_wrap=True)
    out.print("[bold]config[/bold]")
    sys.stdout.write(settings.to_yaml())
    out.print("Nothing was written.")


def _this_command() -> str:
    import shlex

    return shlex.join(["data-engine", *sys.argv[1:]])


def main() -> None:
    """Entry point: turns errors into one line and an exit code."""
    debug = "--debug" in sys.argv
    try:
        code = app(standalone_mode=False) or 0  # the code of a typer.Exit
    except (KeyboardInterrupt, typer.Abort):
        err.print("Stopped at once.")
        code = 130
    except DataEngineError as error:
        if debug:
            raise
        err.print(f"[red]error:[/red] {escape(str(error))}", soft_wrap=True)
        code = 2 if isinstance(error, UsageError) else 1
    except Exception as error:
        code = _click_error(error)
        if code is None:
            raise
    with suppress(BrokenPipeError):
        sys.stdout.flush()
    sys.exit(code)


def _click_error(error: Exception) -> int | None:
    """Click's own usage errors know how to show themselves. Typer carries a click of its own, without a public name."""
    if hasattr(error, "show") and hasattr(error, "exit_code"):
        error.show()
        return int(error.exit_code)
    return None


if __name__ == "__main__":
    main()
