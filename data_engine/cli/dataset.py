"""`data-engine status` and `audit`: what is in a dataset, and whether all of it is right."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from data_engine.cli.app import OutputArgument, app, err, out, say
from data_engine.errors import DatasetError


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
def audit(
    output: OutputArgument,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes (default: one a CPU).")] = None,
) -> None:
    """Prove from the files alone that nothing is lost, doubled or damaged. Exit code 0 only if so."""
    from data_engine.dataset.audit import PlannedCount
    from data_engine.dataset.audit import audit as run_audit
    from data_engine.dataset.export.pool import cpus
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

        report = run_audit(dataset, planned, plan.fingerprint, on_slice, workers or cpus())
    for finding in report.findings:
        say("✗", "red", finding)
    if report.more_findings:
        say("✗", "red", f"and {report.more_findings:,} more")
    totals = report.totals
    facts = f"{totals.images:,} images, {totals.masks:,} masks, {report.shards:,} shards, {report.slices:,} commits"
    if report.damaged_shards:
        out.print(f"note: {report.damaged_shards} input shards were damaged and end early")
    if report.unreferenced:
        out.print(f"note: {report.unreferenced} files of interrupted attempts are not referenced (harmless)")
    if not report.ok:
        say("audit failed:", "red", f"{facts}, {len(report.findings) + report.more_findings:,} findings")
        raise typer.Exit(1)
    say("✓", "green", f"audit passed: {facts}")
