"""`data-engine evaluate`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from data_engine.cli.app import SetOption, app, err, out
from data_engine.errors import StorageError, UsageError
from data_engine.storage import filesystem, is_local, local_path, redact, scheme_of

if TYPE_CHECKING:
    from data_engine.evaluation.ground_truth import GroundTruth
    from data_engine.evaluation.run import EvaluationSettings, Measured
    from data_engine.sam.segmenter import SamSegmenter


@app.command(
    epilog="Examples:\n\n"
    "data-engine evaluate bsds --model starter --clicks 1 --no-automatic\n\n"
    "data-engine evaluate val2017 --ground-truth annotations/instances_val2017.json --model sam_vit_b --limit 500\n\n"
    "data-engine evaluate photos --ground-truth id_maps --set masks.pred_iou_thresh=0.5 --output result.json\n\n"
    "data-engine evaluate photos --ground-truth masks-of-a-larger-model --model small.safetensors\n\n"
    "data-engine evaluate s3://bucket/val2017 --ground-truth s3://bucket/instances_val2017.json.gz --model sam_vit_b"
)
def evaluate(
    data: Annotated[
        str,
        typer.Argument(
            metavar="DATA",
            help="A folder of photographs, or one with images/ and their masks in it; local or in a store (s3://…).",
        ),
    ],
    ground_truth: Annotated[
        str | None,
        typer.Option(
            metavar="FILE_OR_FOLDER",
            help="COCO's JSON (also .json.gz), a folder of id maps (PNG, 0 is no region), or a dataset made by "
            "generate; local or in a store. Default: instances.json or segments/ in DATA.",
        ),
    ] = None,
    model: Annotated[str, typer.Option(help="A known model (see `models`) or a checkpoint file.")] = "starter",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    clicks: Annotated[str, typer.Option(metavar="N,N,…", help="Measure after so many clicks; 0: no clicks.")] = "1,3,5",
    boxes: Annotated[bool, typer.Option(help="Measure boxes.")] = True,
    automatic: Annotated[bool, typer.Option(help="Measure the recall of automatic generation.")] = True,
    baselines: Annotated[bool, typer.Option(help="Measure methods without a model on the same clicks.")] = True,
    config: Annotated[
        str | None,
        typer.Option(help="Settings of automatic generation. Default: quickstart for the starter, else reference."),
    ] = None,
    set_: SetOption = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many images.")] = None,
    masks_per_image: Annotated[
        int | None, typer.Option(min=1, help="Click on so many objects of an image at most, drawn by --seed.")
    ] = None,
    smallest_share: Annotated[
        float, typer.Option(min=0, max=1, help="Do not click on objects below this share of their image.")
    ] = 0.001,
    leave_out: Annotated[
        str | None, typer.Option(metavar="FOLDER", help="Photographs not to measure on: those of the training.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Draws the objects of --masks-per-image.")] = 0,
    output: Annotated[
        str | None, typer.Option(metavar="FILE.json", help="Where the figures go: a path, or a URL of a store.")
    ] = None,
) -> None:
    """Measure a model against ground truth: clicks, boxes, automatic generation, and baselines beside them."""
    from data_engine.config import load_config
    from data_engine.evaluation.layouts import open_ground_truth
    from data_engine.evaluation.report import as_json, as_table, remarks, shown_name
    from data_engine.evaluation.run import EvaluationSettings
    from data_engine.sam.segmenter import load_segmenter

    job = load_config(config or ("quickstart" if model == "starter" else "reference"), set_ or [])
    _refuse_without_effect(set_ or [])
    settings = EvaluationSettings(
        clicks=_numbers(clicks),
        boxes=boxes,
        baselines=baselines,
        automatic=job.masks if automatic else None,
        limit=limit,
        masks_per_image=masks_per_image,
        smallest_share=smallest_share,
        seed=seed,
    )
    if output is not None:
        _refuse_unless_writable(output)
    truth = open_ground_truth(data, ground_truth)
    if leave_out is not None:
        truth = truth.leave_out(leave_out)
    if truth.without:
        err.print(f"{truth.without:,} images have no counterpart in {truth.source}: not measured", soft_wrap=True)
    segmenter = load_segmenter(model, device, job.model.precision)
    measured = _measure(segmenter, truth, settings)
    result = as_json(segmenter, shown_name(model), truth, settings, measured)
    out.print(as_table(result))
    for line in remarks(result):
        out.print(line, soft_wrap=True)
    if output is not None:
        _write(output, result)


def _refuse_without_effect(overrides: list[str]) -> None:
    """Above all of model.name: another model would be measured than the one that is meant."""
    from data_engine.yaml_settings import parse_override

    for override in overrides:
        key = parse_override(override)[0]
        if key.partition(".")[0] != "masks" and key != "model.precision":
            raise UsageError(
                f"--set {override}: has no effect here; set masks.… or model.precision, and name the model with "
                "--model, the device with --device"
            )


def _measure(segmenter: SamSegmenter, truth: GroundTruth, settings: EvaluationSettings) -> Measured:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from data_engine.evaluation.run import measure

    columns = (TextColumn("images"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=err, transient=True) as bar:
        task = bar.add_task("images", total=None)
        return measure(segmenter, truth, settings, lambda done, total: bar.update(task, completed=done, total=total))


def _numbers(clicks: str) -> tuple[int, ...]:
    try:
        numbers = {int(number) for number in clicks.split(",")}
    except ValueError:
        raise UsageError(f"--clicks {clicks!r}: write numbers such as 1,3,5") from None
    return () if numbers == {0} else tuple(sorted(numbers))


def _refuse_unless_writable(output: str) -> None:
    """What can be known before hours of measuring."""
    if scheme_of(output) in ("http", "https"):
        raise UsageError(f"--output {redact(output)}: a web server takes no files; give a path or a URL of a store")
    if not is_local(output):
        filesystem(output)  # a scheme that is unknown or not installed
    elif not local_path(output).parent.is_dir():
        raise UsageError(f"--output {output}: no folder {Path(output).parent}")


def _write(output: str, result: dict[str, object]) -> None:
    from data_engine.pipeline.commit import put

    text = json.dumps(result, indent=1) + "\n"
    if not is_local(output):
        put(output, text.encode())
        return
    try:
        local_path(output).write_text(text, encoding="utf-8")
    except OSError as error:
        raise StorageError(f"{output} cannot be written: {error.strerror}; the figures are above") from None
