"""`data-engine bench`."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.table import Table

from data_engine.cli.app import SetOption, app, err, out
from data_engine.errors import UsageError


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
    set_: SetOption = None,
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
