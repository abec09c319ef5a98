"""`data-engine bench`."""

from __future__ import annotations

import json
from enum import Enum
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from data_engine.cli.app import SetOption, app, err, out
from data_engine.errors import UsageError

if TYPE_CHECKING:
    from data_engine.config import JobConfig


class Precision(str, Enum):
    reference = "reference"
    fast = "fast"


@app.command(
    epilog="Examples:\n\ndata-engine bench photos/ --model sam_vit_b --limit 2 --output speed.json\n\n"
    "data-engine bench s3://bucket/in --cluster 1,2,4,8 --scratch s3://bucket/scratch --images 800"
)
def bench(
    input: Annotated[str, typer.Argument(metavar="INPUT", help="Images, as for generate.")],
    model: Annotated[
        str | None, typer.Option(help="starter, vit_b, vit_l or vit_h with random weights, or a checkpoint file.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    precision: Annotated[Precision, typer.Option(help="Of the model.")] = Precision.reference,
    compiled: Annotated[bool, typer.Option("--compiled", help="Through torch.compile.")] = False,
    against: Annotated[
        str | None, typer.Option(help="segment-anything, transformers (or both with a comma), or none.")
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Rounds of each, in turns.")] = 3,
    limit: Annotated[int, typer.Option(min=1, help="Images to measure with.")] = 1,
    output: Annotated[str | None, typer.Option(help="Where the result goes as JSON.")] = None,
    config: Annotated[str | None, typer.Option(help="A preset or a YAML file.")] = None,
    set_: SetOption = None,
    cluster: Annotated[
        str | None, typer.Option(metavar="N,N,…", help="Measure a Ray cluster instead: numbers of workers, e.g. 1,2,4.")
    ] = None,
    scratch: Annotated[
        str | None, typer.Option(help="With --cluster: where the datasets go that this makes; all nodes must reach it.")
    ] = None,
    images: Annotated[int, typer.Option(min=2, help="With --cluster: images to mask with each number.")] = 200,
) -> None:
    """Measure mask generation on this machine, side by side with segment-anything, or how a Ray cluster scales."""
    from data_engine.config import load_config

    overrides = set_ or []
    if cluster is not None:
        if scratch is None:
            raise UsageError("--cluster needs --scratch: a folder or URL that all nodes reach")
        settings = load_config(config, ([f"model.name={json.dumps(model)}"] if model else []) + overrides)
        _bench_cluster(input, scratch, settings, cluster, images)
        return
    from data_engine.bench.command import contenders, run
    from data_engine.bench.mask_generation import BenchOptions

    options = BenchOptions(
        model=model or "starter",
        device=device,
        precision=precision.value,
        compiled=compiled,
        masks=load_config(config or "reference", overrides).masks,
        repeats=repeats,
        against=contenders(against),
    )
    run(input, options, limit=limit, output=output, console=out)


def _bench_cluster(input: str, scratch: str, settings: JobConfig, cluster: str, images: int) -> None:
    from data_engine.pipeline.scaling import measure_scaling

    try:
        counts = [int(number) for number in cluster.split(",")]
    except ValueError:
        counts = []
    if not counts or min(counts) < 1:
        raise UsageError(f"--cluster {cluster!r}: write numbers of workers such as 1,2,4")
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
