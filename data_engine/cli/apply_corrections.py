"""`data-engine apply-corrections`."""

from __future__ import annotations

from typing import Annotated

import typer

from data_engine.cli.app import OutputArgument, app, err, out


@app.command(
    "apply-corrections",
    epilog="Examples:\n\ndata-engine view masks/\n\n"
    "data-engine apply-corrections masks/ corrected/\n\n"
    "data-engine apply-corrections masks/ corrected/ --only-done\n\n"
    "data-engine export corrected/ coco/ --format coco",
)
def apply_corrections(
    output: OutputArgument,
    destination: Annotated[
        str, typer.Argument(metavar="DEST", help="Where the corrected dataset goes: a folder or an fsspec URL.")
    ],
    only_done: Annotated[
        bool, typer.Option("--only-done", help="Only the images that somebody has gone through to the end (key D).")
    ] = False,
    version: Annotated[
        str | None,
        typer.Option(help="The corrections up to a moment, as an earlier call named them. Default: all there are."),
    ] = None,
) -> None:
    """Write OUTPUT as people have corrected it on the page /correct of the viewer: a dataset like any other.

    Run it again to go on where it was stopped.
    """
    from rich.progress import Progress

    from data_engine.corrections.apply import apply_corrections
    from data_engine.dataset.reader import MaskDataset

    with Progress(console=err, transient=True) as bar:
        task = bar.add_task("writing", total=len(MaskDataset(output).commits))
        applied = apply_corrections(
            output, destination, version=version, only_done=only_done, on_slice=lambda _: bar.advance(task)
        )
    totals = applied.totals
    out.print(
        f"{destination}: {totals.images:,} images, {totals.masks:,} masks; {applied.made:,} made by people, "
        f"{applied.gone:,} of the model's gone",
        soft_wrap=True,
    )
    out.print(
        f"images done: {applied.done:,}; by {', '.join(applied.people)}; version {applied.version}", soft_wrap=True
    )
