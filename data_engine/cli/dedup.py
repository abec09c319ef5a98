"""`data-engine dedup`."""

from __future__ import annotations

import json
from enum import Enum
from typing import TYPE_CHECKING, Annotated

import typer

from data_engine.cli.app import OutputArgument, app, err, out
from data_engine.dedup.settings import DEFAULT_COSINE, DEFAULT_MASKS_IOU, DEFAULT_THRESHOLD
from data_engine.errors import UsageError

if TYPE_CHECKING:
    from rich.table import Table

    from data_engine.dedup.run import DedupReport


class EngineChoice(str, Enum):
    local = "local"
    ray = "ray"


@app.command(
    epilog="Examples:\n\ndata-engine dedup masks/\n\ndata-engine dedup masks/ --threshold 4 --version strict --dry-run"
    "\n\ndata-engine dedup s3://bucket/masks --memory 16GB --temp-folder /mnt/disk --json"
    "\n\ndata-engine dedup masks/ --masks --mask-iou 0.9\n\ndata-engine dedup train-masks/ --against test-masks/"
    "\n\ndata-engine dedup masks/ --semantic --cosine 0.98"
)
def dedup(
    output: OutputArgument,
    threshold: Annotated[
        int, typer.Option(help="Near: so many of the 64 bits of the perceptual hash may differ.")
    ] = DEFAULT_THRESHOLD,
    exact: Annotated[bool, typer.Option("--exact", help="Only images of the same bytes.")] = False,
    version: Annotated[str | None, typer.Option(help="Name of the result. Default: the next of v1, v2, …")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Find and count, write nothing.")] = False,
    masks: Annotated[bool, typer.Option("--masks", help="Also duplicates among the masks of each image.")] = False,
    mask_iou: Annotated[
        float, typer.Option(help="With --masks: a mask goes above this IoU with a better one.")
    ] = DEFAULT_MASKS_IOU,
    against: Annotated[
        str | None,
        typer.Option(
            metavar="DATASET", help="Instead: the images that this other dataset has too, such as a test set."
        ),
    ] = None,
    semantic: Annotated[
        bool,
        typer.Option("--semantic", help="Also images that stay whose embeddings are alike: reads their originals."),
    ] = False,
    model: Annotated[
        str | None, typer.Option(help="With --semantic: whose embeddings. Default: the model that made the masks.")
    ] = None,
    cosine: Annotated[
        float, typer.Option(help="With --semantic: alike is above this cosine of two embeddings.")
    ] = DEFAULT_COSINE,
    device: Annotated[str, typer.Option(help="With --semantic: auto, cpu, cuda or cuda:N.")] = "auto",
    input: Annotated[
        str | None,
        typer.Option(help="With --semantic: the INPUT of the dataset, signed anew, where it was a signed link."),
    ] = None,
    engine: Annotated[EngineChoice, typer.Option(help="local: DuckDB on this machine; ray: a Ray cluster.")] = (
        EngineChoice.local
    ),
    ray_address: Annotated[
        str | None, typer.Option(help="Default: RAY_ADDRESS, the cluster this runs in, or a new one here.")
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="With --masks, processes too. Default: all cores.")] = None,
    memory: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Such as 8GB; what does not fit goes to disk. Default: 80 %.")
    ] = None,
    temp_folder: Annotated[str | None, typer.Option(help="Where that goes. Default: the system's.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Find images that are there twice, the same or nearly so, and say which ones to leave out.

    Writes a version beside the dataset OUTPUT, which stays as it is. MaskDataset(OUTPUT, deduplicated=True) honours it.
    """
    from data_engine.dataset.export.pool import cpus
    from data_engine.dedup.run import deduplicate
    from data_engine.dedup.settings import DedupSettings, SemanticSettings

    _refuse_idle(exact and threshold != DEFAULT_THRESHOLD, "--threshold", "goes without --exact")
    _refuse_idle(not masks and mask_iou != DEFAULT_MASKS_IOU, "--mask-iou", "needs --masks")
    _refuse_idle(engine is not EngineChoice.ray and ray_address is not None, "--ray-address", "needs --engine ray")
    for option, given in (
        ("--model", model is not None),
        ("--cosine", cosine != DEFAULT_COSINE),
        ("--device", device != "auto"),
        ("--input", input is not None),
    ):
        _refuse_idle(given and not semantic, option, "needs --semantic")
    settings = DedupSettings(
        threshold=None if exact else threshold,
        masks_iou=mask_iou if masks else None,
        semantic=SemanticSettings(model=model, cosine=cosine, device=device, input=input) if semantic else None,
        engine=engine.value,
        ray_address=ray_address,
        threads=threads,
        processes=threads or cpus(),
        memory=memory,
        temp_folder=temp_folder,
    )
    with err.status("deduplicating") as spinner:

        def on_progress(step: str, done: int, total: int | None) -> None:
            spinner.update(f"{step}: {done:,} of {total:,}" if total else step)

        report = deduplicate(
            output, settings, version=version, dry_run=dry_run, against=against, on_progress=on_progress
        )
    if report.counts.get("semantic_missing"):
        err.print(
            f"{report.counts['semantic_missing']:,} images were not compared by their embeddings: "
            "their originals are gone, have changed or cannot be decoded",
            soft_wrap=True,
        )
    if as_json:
        out.print(json.dumps(report.as_json(), indent=1), soft_wrap=True)
        return
    out.print(_table(report))
    if report.version is None:
        out.print("dry run: nothing is written")
    else:
        out.print(f"{output}: version {report.version.version!r}", soft_wrap=True)


def _refuse_idle(idle: bool, option: str, reason: str) -> None:
    """An option that would do nothing is a misunderstanding, of which the result says nothing."""
    if idle:
        raise UsageError(f"{option} {reason}")


def _table(report: DedupReport) -> Table:
    from rich.table import Table

    counts = report.counts
    share = counts["left_out"] / max(1, counts["compared"])
    rows = [("images", counts["images"]), ("  compared", counts["compared"])]
    if "others" in counts:
        rows.append(("images of the other dataset", counts["others"]))
    else:
        rows.append(("different hashes", counts["hashes"]))
        rows.append(("clusters of duplicates", counts["clusters"]))
        rows.append(("  images of the largest", counts["largest_cluster"]))
    rows.append((f"left out ({share:.1%})", counts["left_out"]))
    of = "an image there" if "others" in counts else "the image that stays"
    rows.append((f"  exact: the bytes of {of}", counts["exact"]))
    rows.append(("  near", counts["near"]))
    if "chained" in counts:
        rows.append(("    beyond the threshold, by a chain", counts["chained"]))
        rows.append(("copies: the bytes of any other image", counts["same_bytes"]))
    if "semantic" in counts:
        rows.append(("  semantic: the embedding of the image that stays", counts["semantic"]))
        rows.append(("    beyond the cosine, by a chain", counts["semantic_chained"]))
        rows.append(("embeddings compared", counts["semantic_compared"]))
        rows.append(("  computed now", counts["semantic_computed"]))
        rows.append(("  missing: the original cannot be read", counts["semantic_missing"]))
    rows.append(("masks of those left out", counts["masks_left_out"]))
    if "mask_duplicates" in counts:
        rows.append(("masks", counts["masks"]))
        rows.append(("  duplicates in their image", counts["mask_duplicates"]))
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(justify="right")
    for name, count in rows:
        table.add_row(name, f"{count:,}")
    return table
