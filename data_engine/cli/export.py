"""`data-engine export`."""

from __future__ import annotations

from enum import Enum
from typing import Annotated

import typer

from data_engine.cli.app import OutputArgument, app, err, out
from data_engine.errors import DatasetError


class ExportFormat(str, Enum):
    sa1b = "sa1b"
    overlays = "overlays"


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
