"""`data-engine report`."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from data_engine.cli.app import OutputArgument, app, err, out


@app.command(
    epilog="Examples:\n\ndata-engine report masks/ report.html\n\n"
    "data-engine report s3://bucket/masks s3://bucket/report.html --json report.json --pictures 16\n\n"
    "data-engine report masks/ comparison.html --against masks-before/"
)
def report(
    output: OutputArgument,
    page: Annotated[str, typer.Argument(metavar="REPORT.html", help="Where the page goes: a file or an fsspec URL.")],
    against: Annotated[
        str | None, typer.Option(metavar="OTHER", help="Another dataset: both side by side, with differences.")
    ] = None,
    json_: Annotated[str | None, typer.Option("--json", metavar="FILE", help="The same figures as JSON.")] = None,
    pictures: Annotated[
        int, typer.Option(min=0, max=48, help="Pictures on each contact sheet; 0: read no originals.")
    ] = 8,
    seed: Annotated[int, typer.Option(min=0, help="Draws the random pictures.")] = 0,
    input: Annotated[
        str | None, typer.Option(help="The INPUT of the dataset, signed anew, where it was a signed link.")
    ] = None,
) -> None:
    """One HTML file on what is in a dataset: distributions, rejects, failures, throughput, pictures. Opens offline."""
    from rich.text import Text

    from data_engine.dataset.export.destination import put_bytes
    from data_engine.dataset.reader import MaskDataset
    from data_engine.report.page import render
    from data_engine.report.run import ReportSettings, look_at, report_json

    settings = ReportSettings(pictures=pictures, seed=seed)
    if against is not None:
        MaskDataset(against)  # its name may be wrong, which is better said before the first one is read
    with err.status("reading") as spinner:
        sides = [
            look_at(root, settings, lambda step, root=root: spinner.update(Text(f"{root}: {step}")), links)  # type: ignore[misc]
            for root, links in ((output, input), (against, None))
            if root is not None
        ]
        spinner.update("writing")
        html = render(sides, settings).encode("utf-8", "backslashreplace")
        put_bytes(page, html)
        if json_ is not None:
            figures = json.dumps(report_json(sides), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
            put_bytes(json_, figures.encode("utf-8", "backslashreplace"))
    drawn = [picture for side in sides for picture in side.pictures.values()]
    missing = sum(picture.uri is None for picture in drawn)
    out.print(f"{page}: {len(html) / 1e6:.2f} MB, {len(drawn) - missing} pictures", soft_wrap=True)
    if missing:
        out.print(f"note: {missing} pictures could not be drawn; the page says why")
