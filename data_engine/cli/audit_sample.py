"""`data-engine audit-sample` and `audit-report`: people judge a random sample of the masks."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from typing import TYPE_CHECKING, Annotated

import typer

from data_engine.cli.app import OutputArgument, app, err, out
from data_engine.errors import DatasetError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from data_engine.dataset.reader import MaskDataset
    from data_engine.human_audit.design import Design
    from data_engine.human_audit.sample import Sample

NameOption = Annotated[str, typer.Option(help="Of the audit: a folder in OUTPUT/_audits.")]

_DEFAULT_MASKS = 400


class Stratify(str, Enum):
    none = "none"
    stability = "stability"
    iou = "iou"
    both = "both"


class AllocationChoice(str, Enum):
    equal = "equal"
    proportional = "proportional"


@app.command(
    "audit-sample",
    epilog="Examples:\n\ndata-engine audit-sample masks/ --masks 400 --seed 0 --name first\n\n"
    "data-engine audit-sample masks/ --images 50 --name whole-images\n\n"
    "data-engine audit-sample masks/ --masks 600 --stratify both --name by-score\n\n"
    "data-engine audit-sample masks/ --name first --export sheet.csv --pictures crops/\n\n"
    "data-engine audit-sample masks/ --name first --import sheet.csv --who NAME",
)
def audit_sample(
    output: OutputArgument,
    name: NameOption = "first",
    masks: Annotated[
        int | None, typer.Option(min=1, help=f"Draw so many masks. Default for a new audit: {_DEFAULT_MASKS}.")
    ] = None,
    images: Annotated[int | None, typer.Option(min=1, help="Draw so many images, with all of their masks.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="The same seed draws the same masks.")] = 0,
    stratify: Annotated[Stratify, typer.Option(help="Draw from the bins of these scores separately.")] = Stratify.none,
    allocation: Annotated[
        AllocationChoice,
        typer.Option(help="With --stratify. equal: as many masks from each bin; proportional: by its share."),
    ] = AllocationChoice.equal,
    bins: Annotated[int, typer.Option(min=1, max=20, help="Of each score, with about as many masks each.")] = 3,
    stability_edges: Annotated[
        str | None, typer.Option(metavar="X,X,…", help="Or: the edges between the bins of stability.")
    ] = None,
    iou_edges: Annotated[
        str | None, typer.Option(metavar="X,X,…", help="Or: the edges between the bins of predicted IoU.")
    ] = None,
    export: Annotated[
        str | None, typer.Option(metavar="SHEET.csv", help="Write the sample as a sheet to fill in.")
    ] = None,
    pictures: Annotated[
        str | None, typer.Option(metavar="FOLDER", help="With --export: draw each mask into a picture here.")
    ] = None,
    import_: Annotated[
        str | None, typer.Option("--import", metavar="SHEET.csv", help="Take in the answers of a filled sheet.")
    ] = None,
    who: Annotated[str | None, typer.Option(metavar="NAME", help="With --import: who judged.")] = None,
    input: Annotated[
        str | None, typer.Option(help="The INPUT of the dataset, signed anew, where it was a signed link.")
    ] = None,
) -> None:
    """Draw a random sample of the masks of OUTPUT for people to judge.

    They judge it in the viewer (data-engine view OUTPUT, page /audit) or on a sheet; audit-report sums it up.
    """
    from data_engine.dataset.reader import MaskDataset
    from data_engine.human_audit.design import Design
    from data_engine.human_audit.report_table import drawn
    from data_engine.human_audit.sample import read_sample

    if masks and images:
        raise UsageError("--masks and --images are two designs: choose one")
    if import_ and not who:
        raise UsageError("--import needs --who NAME: the person whose answers they are")
    if pictures and not export:
        raise UsageError("--pictures needs --export SHEET.csv: the sheet says which picture is which mask")
    design = Design(
        unit="images" if images else "masks",
        size=images or masks or _DEFAULT_MASKS,
        seed=seed,
        stratify={"none": (), "both": ("stability", "iou")}.get(stratify.value, (stratify.value,)),
        allocation=allocation.value,
        bins=bins,
        stability_edges=_edges(stability_edges),
        iou_edges=_edges(iou_edges),
    )
    asked = masks is not None or images is not None or design != Design(size=_DEFAULT_MASKS)
    dataset = MaskDataset(output)
    sample = None if asked else read_sample(output, name)
    if sample is None and (asked or not (export or import_)):
        sample = _draw(dataset, name, design)
        err.print(
            f"judge it on the page /audit?name={name} of `data-engine view`, or on a sheet (--export)", soft_wrap=True
        )
    if sample is None:
        raise DatasetError(f"{output} has no audit named {name!r}: draw one with --masks or --images")
    out.print(f"{name}: {drawn(sample.facts)}", soft_wrap=True)
    if export:
        _export(sample, export, pictures, input)
    if import_:
        _import(sample, import_, who or "")


@app.command(
    "audit-report",
    epilog="Examples:\n\ndata-engine audit-report masks/ --name first\n\n"
    "data-engine audit-report masks/ --name first --json",
)
def audit_report(
    output: OutputArgument,
    name: NameOption = "first",
    who: Annotated[str | None, typer.Option(metavar="NAME", help="Only this person's answers.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """What the answers to an audit say of the whole run: precision with its 95 % confidence interval."""
    from data_engine.dataset.reader import MaskDataset
    from data_engine.human_audit.answers import AnswerBook
    from data_engine.human_audit.report import make_report
    from data_engine.human_audit.report_table import as_json as report_json
    from data_engine.human_audit.report_table import headline, remarks, tables
    from data_engine.human_audit.sample import read_sample

    sample = read_sample(output, name)
    if sample is None:
        raise DatasetError(f"{output} has no audit named {name!r}: data-engine audit-sample draws one")
    with err.status("reading the answers"):
        answers = AnswerBook(output, name).read()
    if who is not None:
        people = sorted({answer.who for answer in answers})
        answers = [answer for answer in answers if answer.who == who]
        if not answers:
            raise UsageError(f"{who!r} has not answered; these have: {', '.join(people) or 'nobody'}")
    report = make_report(sample, answers)
    dataset_masks = MaskDataset(output).totals.masks
    if as_json:
        out.print(json.dumps(report_json(report), indent=1), soft_wrap=True)
        return
    out.print(headline(report), soft_wrap=True)
    for table in tables(report):
        out.print()
        out.print(table)
    for remark in remarks(report, dataset_masks):
        out.print(f"note: {remark}", soft_wrap=True)


def _draw(dataset: MaskDataset, name: str, design: Design) -> Sample:
    from data_engine.human_audit.new_sample import make_sample

    with _counted("drawing", 2 * len(dataset.commits)) as advance:
        return make_sample(dataset, name, design, lambda record: advance())


def _export(sample: Sample, sheet: str, pictures: str | None, input_uri: str | None) -> None:
    from data_engine.human_audit.sheet import export_sheet

    files: list[str | None] = []
    if pictures is not None:
        from data_engine.human_audit.pictures import write_pictures

        with _counted("drawing pictures", sample.facts.masks) as advance:
            files = write_pictures(sample, pictures, input_uri, advance)
    export_sheet(sample, sheet, files)
    out.print(f"{sheet}: {sample.facts.masks:,} masks to judge", soft_wrap=True)
    if files.count(None):
        out.print(f"left out: {files.count(None):,} pictures of images that are gone or have changed since")


def _import(sample: Sample, sheet: str, who: str) -> None:
    from data_engine.human_audit.answers import AnswerSession
    from data_engine.human_audit.sheet import read_sheet

    try:
        answers = read_sheet(sample, sheet, who)
    except FileNotFoundError:
        raise UsageError(f"{sheet}: there is no such file") from None
    if answers:
        AnswerSession(sample.root, sample.facts.name).add(answers)
    out.print(f"{sheet}: {len(answers):,} answers of {who}", soft_wrap=True)


@contextmanager
def _counted(what: str, total: int) -> Iterator[Callable[[], None]]:
    """A bar on stderr, and what moves it on by one."""
    from rich.progress import Progress

    with Progress(console=err, transient=True) as bar:
        task = bar.add_task(what, total=total)
        yield lambda: bar.advance(task)


def _edges(text: str | None) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(",")) if text else ()
    except ValueError:
        raise UsageError(f"edges {text!r}: use numbers with commas between them, such as 0.9,0.95") from None
