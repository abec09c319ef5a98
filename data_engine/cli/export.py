"""`data-engine export`."""

from __future__ import annotations

import time
from enum import Enum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from data_engine.cli.app import OutputArgument, app, err, out
from data_engine.errors import UsageError

if TYPE_CHECKING:
    from data_engine.dataset.export.format import Format
    from data_engine.dataset.export.job import ExportJob
    from data_engine.dataset.export.report import ExportReport

_SECONDS_BETWEEN_LINES = 30.0


class ExportFormat(str, Enum):
    sa1b = "sa1b"
    coco = "coco"
    coco_polygons = "coco-polygons"
    yolo_seg = "yolo-seg"
    webdataset = "webdataset"
    label_studio = "label-studio"
    huggingface = "huggingface"
    png = "png"
    overlays = "overlays"


_FORMATS = (
    "sa1b: SA-1B's jpg and json; coco: run lengths; coco-polygons, yolo-seg: polygons, and a report of what they lose; "
    "webdataset: tars; label-studio: predictions; huggingface: Parquet and a dataset card; png: id maps; "
    "overlays: pictures to look at."
)
_EPILOG = "Examples:\n\n" + "\n\n".join(
    (
        "data-engine export masks/ sa1b/ --format sa1b --images-per-tar 10000",
        "data-engine export masks/ coco/ --format coco --min-iou 0.9 --min-area 100",
        "data-engine export masks/ yolo/ --format yolo-seg --tolerance 0.5",
        "data-engine export s3://bucket/masks s3://bucket/wds --format webdataset --images-per-tar 1000 --workers 8",
        "data-engine export masks/ tasks/ --format label-studio --image-url 'https://host/photos/{image_id}'",
        "data-engine export masks/ pictures/ --format overlays --limit 20",
    )
)


@app.command(epilog=_EPILOG)
def export(
    output: OutputArgument,
    destination: Annotated[str, typer.Argument(metavar="DEST", help="Where to write: a folder or an fsspec URL.")],
    format: Annotated[ExportFormat, typer.Option(help=_FORMATS)],
    images_per_tar: Annotated[
        int | None,
        typer.Option(min=1, help="sa1b: tars of so many images (default: a plain folder); webdataset: default 1000."),
    ] = None,
    images_per_file: Annotated[
        int | None,
        typer.Option(min=1, help="coco, coco-polygons, huggingface: default 1000; label-studio: default 100."),
    ] = None,
    tolerance: Annotated[
        float | None,
        typer.Option(min=0, help="coco-polygons, yolo-seg: how far, in pixels, a polygon may leave the outline [1.0]."),
    ] = None,
    images: Annotated[
        bool | None, typer.Option("--images/--no-images", help="yolo-seg: write the images too (default), or not.")
    ] = None,
    arrays: Annotated[bool | None, typer.Option("--arrays", help="webdataset: add the masks as npz.")] = None,
    image_url: Annotated[
        str | None,
        typer.Option(help="label-studio: what it opens, with {image_id} or {uri} in it (default: {uri})."),
    ] = None,
    min_iou: Annotated[float | None, typer.Option(help="Only masks of at least this predicted IoU.")] = None,
    min_stability: Annotated[float | None, typer.Option(help="Only masks of at least this stability score.")] = None,
    min_area: Annotated[int | None, typer.Option(min=0, help="Only masks of at least so many pixels.")] = None,
    deduplicated: Annotated[
        bool, typer.Option("--deduplicated/--no-deduplicated", help="Without the duplicates that were found.")
    ] = False,
    dedup_version: Annotated[
        str | None, typer.Option(help="--deduplicated: that version of duplicates (default: the newest).")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many images.")] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes, each with a file at a time (default: one a CPU).")
    ] = None,
    input: Annotated[
        str | None, typer.Option(help="The INPUT of the dataset, signed anew, where it was a signed link.")
    ] = None,
) -> None:
    """Write the dataset OUTPUT in another format. Run it again to go on; finished files are skipped.

    Exit code 3: some images could not be read again.
    """
    from data_engine.dataset.export.filters import MaskFilter
    from data_engine.dataset.export.job import ExportJob
    from data_engine.dataset.export.pool import cpus
    from data_engine.pipeline.originals import Originals

    options = {
        "images_per_tar": images_per_tar,
        "images_per_file": images_per_file,
        "tolerance": tolerance,
        "with_images": images,
        "with_arrays": arrays,
        "image_url": image_url,
    }
    chosen = _make_format(format, {name: value for name, value in options.items() if value is not None})
    if dedup_version is not None and not deduplicated:
        raise UsageError("--dedup-version needs --deduplicated")
    job = ExportJob(
        root=output,
        destination=destination,
        format=chosen,
        source=Originals.of_dataset(output, input) if chosen.needs_originals else None,
        masks=MaskFilter(min_iou=min_iou, min_stability=min_stability, min_area=min_area),
        limit=limit,
        deduplicated=(dedup_version or True) if deduplicated else False,
        workers=workers or cpus(),
    )
    report, lines = _run(job)
    _say(destination, report, lines)
    if report.missing:
        raise typer.Exit(3)


_OPTION_NAMES = {"with_images": "--images", "with_arrays": "--arrays"}


def _make_format(name: ExportFormat, options: dict[str, Any]) -> Format:
    """Raises UsageError for an option that the format does not have."""
    from dataclasses import fields

    from data_engine.dataset.export.coco import Coco, CocoPolygons
    from data_engine.dataset.export.huggingface import HuggingFace
    from data_engine.dataset.export.id_maps import IdMaps
    from data_engine.dataset.export.label_studio import LabelStudio
    from data_engine.dataset.export.overlays import Overlays
    from data_engine.dataset.export.sa1b import Sa1b
    from data_engine.dataset.export.webdataset import WebDataset
    from data_engine.dataset.export.yolo import YoloSegmentation

    kinds: tuple[type[Any], ...] = (
        Sa1b,
        Coco,
        CocoPolygons,
        YoloSegmentation,
        WebDataset,
        LabelStudio,
        HuggingFace,
        IdMaps,
        Overlays,
    )
    kind = next(kind for kind in kinds if kind.name == name.value)
    foreign = sorted(options.keys() - {field.name for field in fields(kind)})
    if foreign:
        shown = ", ".join(_OPTION_NAMES.get(option, f"--{option.replace('_', '-')}") for option in foreign)
        raise UsageError(f"--format {name.value} takes no {shown}")
    made: Format = kind(**options)
    return made


def _run(job: ExportJob) -> tuple[ExportReport, list[str]]:
    """With a bar on a terminal, and a line now and then elsewhere."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("exporting"), BarColumn(), MofNCompleteColumn(), TextColumn("images"), TimeRemainingColumn())
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as bar:
        task = bar.add_task("exporting", total=None)
        said = time.monotonic()

        def on_images(done: int, total: int) -> None:
            nonlocal said
            bar.update(task, completed=done, total=total)
            if not err.is_terminal and time.monotonic() - said >= _SECONDS_BETWEEN_LINES:
                said = time.monotonic()
                err.print(f"exporting: {done:,} of {total:,} images")

        return job.run(on_images)


def _say(destination: str, report: ExportReport, lines: list[str]) -> None:
    out.print(
        f"{destination}: {report.images:,} images, {report.masks:,} masks in {report.files:,} files", soft_wrap=True
    )
    for line in lines:
        out.print(line, soft_wrap=True)
    for left_out, reason in (
        (report.failed, "failed when they were masked"),
        (report.without_masks, "have no masks"),
        (report.filtered_out, "have no masks that pass the filters"),
        (report.too_large, "have more pixels a side than a JPEG can"),
        (report.missing, "could not be read again, or have changed since"),
    ):
        if left_out:
            out.print(f"left out: {left_out:,} images that {reason}")
