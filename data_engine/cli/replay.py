"""`data-engine replay`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from data_engine.cli.app import OutputArgument, SetOption, app, err, out
from data_engine.errors import DatasetError, UsageError

if TYPE_CHECKING:
    from data_engine.config import JobConfig
    from data_engine.dataset.reader import MaskDataset
    from data_engine.human_audit.estimators import Estimate
    from data_engine.masks.settings import MaskSettings
    from data_engine.pipeline.plan import JobPlan
    from data_engine.replay.judged import Judged
    from data_engine.replay.outcome import Outcome


@app.command(
    epilog="Examples:\n\n"
    "data-engine generate photos/ masks/ --set output.keep_rejects=0.01\n\n"
    "data-engine replay masks/ --set masks.pred_iou_thresh=0.8 --set masks.stability_score_thresh=0.9\n\n"
    "data-engine replay masks/ --sweep masks.stability_score_thresh=0.86:0.98:0.02\n\n"
    "data-engine replay masks/ stricter/ --set masks.pred_iou_thresh=0.92"
)
def replay(
    output: OutputArgument,
    destination: Annotated[
        str | None, typer.Argument(metavar="[DEST]", help="Write the result as a dataset: a folder or an fsspec URL.")
    ] = None,
    set_: SetOption = None,
    sweep: Annotated[
        str | None,
        typer.Option(metavar="KEY=FIRST:LAST:STEP", help="Several values of one setting; also KEY=VALUE,VALUE,…"),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many images that kept rejects.")] = None,
    audit: Annotated[
        str | None, typer.Option(metavar="NAME", help="Also the precision that people found, of the masks that stay.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print all figures as a JSON array of objects.")] = False,
) -> None:
    """What other thresholds would have made of OUTPUT, without its model: its stored rejects are filtered again.

    Exact, for the images that kept them (output.keep_rejects when it was generated).
    """
    from data_engine.dataset.reader import MaskDataset
    from data_engine.pipeline.plan import read_plan
    from data_engine.replay.judged import Judged
    from data_engine.replay.settings import changed, settings_of_run
    from data_engine.replay.settings import sweep as values_of

    plan = read_plan(output)
    if plan is None:
        raise DatasetError(f"no dataset at {output}: it has no _plan/job.json")
    config = settings_of_run(plan, output)
    dataset = MaskDataset(output)
    overrides = list(set_ or [])
    if destination is not None:
        if sweep or limit or audit or json:
            raise UsageError("--sweep, --limit, --audit and --json are for trying, and do not go with DEST")
        _write(dataset, plan, config, changed(config, overrides), destination)
        return
    values = values_of(sweep) if sweep is not None else None
    if values is not None:
        key, each = values
        tries = {value: changed(config, [*overrides, f"{key}={value}"]) for value in each}
    else:
        tries = {"as set": changed(config, overrides)} if overrides else {}
    judged = Judged.read(output, audit, plan.fingerprint) if audit is not None else None
    outcomes = _try(dataset, config, tries, limit, judged)
    if json:
        precise = [{"precision": _precision(judged.estimate(outcome.label))} if judged else {} for outcome in outcomes]
        out.print_json(data=[{**outcome.as_dict(), **more} for outcome, more in zip(outcomes, precise, strict=True)])
        return
    heading = values[0].removeprefix("masks.") if values else ""
    _print(outcomes, heading)
    if judged:
        _print_precision(judged, outcomes, heading)
    _say_coverage(dataset, config, outcomes[0].images)


def _try(
    dataset: MaskDataset, config: JobConfig, tries: dict[str, MaskSettings], limit: int | None, judged: Judged | None
) -> list[Outcome]:
    from rich.progress import MofNCompleteColumn, Progress, SpinnerColumn

    from data_engine.replay.run import try_settings

    with Progress(SpinnerColumn(), "replaying", MofNCompleteColumn(), console=err, transient=True) as bar:
        expected = round(config.output.keep_rejects * len(dataset))
        task = bar.add_task("replaying", total=min(limit or expected, expected))
        return try_settings(dataset, config, tries, limit=limit, judged=judged, on_image=lambda: bar.advance(task))


def _write(dataset: MaskDataset, plan: JobPlan, config: JobConfig, settings: MaskSettings, destination: str) -> None:
    from rich.progress import Progress

    from data_engine.replay.write import write_replay

    with Progress(console=err, transient=True) as bar:
        task = bar.add_task("replaying", total=len(dataset.commits))
        totals = write_replay(dataset, plan, config, settings, destination, lambda _: bar.advance(task))
    out.print(f"{destination}: {totals.images:,} images, {totals.masks:,} masks", soft_wrap=True)
    if left_out := len(dataset) - totals.images:
        err.print(
            f"{left_out:,} of {len(dataset):,} images are left out: they kept no rejects "
            f"(output.keep_rejects is {config.output.keep_rejects:g}; 1 keeps them of all)",
            soft_wrap=True,
        )


def _print(outcomes: list[Outcome], heading: str) -> None:
    """Two tables, of what stays and of what goes: together they would be too wide for a terminal."""
    masks = _table(heading, "masks", "an image", "gained", "lost", "area p10", "p50", "p90")
    rejected = _table(heading, "rejected: IoU", "stability", "edge", "area", "duplicate")
    for outcome in outcomes:
        values: dict[str, Any] = outcome.as_dict()
        each = values["masks_an_image"]
        numbers = [outcome.masks, None if each is None else round(each, 1), outcome.gained, outcome.lost]
        masks.add_row(outcome.label, *map(_cell, [*numbers, *(values[f"area_p{p}"] for p in (10, 50, 90))]))
        reasons = ("iou", "stability", "edge", "area", "nms")
        rejected.add_row(outcome.label, *(_cell(values[f"rejected_{reason}"]) for reason in reasons))
    out.print(masks)
    out.print()
    out.print(rejected)


def _print_precision(judged: Judged, outcomes: list[Outcome], heading: str) -> None:
    table = _table(heading, "judged", "accepted", "95 % interval")
    for outcome in outcomes:
        found = judged.estimate(outcome.label)
        share = "-" if found.share is None else f"{found.share:.1%}"
        interval = f"{found.interval.low:.1%} to {found.interval.high:.1%}"
        table.add_row(outcome.label, _cell(found.decided), share, interval)
    out.print()
    out.print(table)


def _precision(found: Estimate) -> dict[str, Any]:
    return {"judged": found.decided, "accepted": found.share, "low": found.interval.low, "high": found.interval.high}


def _table(*headings: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for place, heading in enumerate(headings):
        table.add_column(heading, justify="right" if place else "left", overflow="fold")
    return table


def _cell(number: float | None) -> str:
    return "-" if number is None else f"{number:,}"


def _say_coverage(dataset: MaskDataset, config: JobConfig, images: int) -> None:
    floors = config.reject_floors
    err.print(
        f"{images:,} of {len(dataset):,} images; areas in pixels. "
        f"Can be replayed down to pred_iou_thresh {floors.predicted_iou:g} and stability_score_thresh "
        f"{floors.stability:g}",
        soft_wrap=True,
    )
