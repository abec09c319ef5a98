"""The result of a benchmark as one table and a few lines."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.table import Table

from data_engine.bench.contender import OUTSIDE, STAGES

_OURS = "here"
_NONE = "–"
_WIDTH = 120  # of a table that no terminal limits


def print_result(result: dict[str, Any], console: Console) -> None:
    console.print(_title(result), soft_wrap=True)
    console.print(_table(result), width=None if console.is_terminal else _WIDTH)
    for line in _notes(result):
        console.print(line, soft_wrap=True)


def _title(result: dict[str, Any]) -> str:
    settings, machine = result["settings"], result["machine"]
    images = result["images"]
    sizes = ", ".join(sorted({f"{height}x{width}" for height, width in (image["size"] for image in images)}))
    grid = f"{settings['points_per_side']}x{settings['points_per_side']} points"
    crops = f", {settings['crop_n_layers']} crop layers" if settings["crop_n_layers"] else ""
    where = machine.get("gpu") or f"{machine['processor']}, threads: {machine['threads']}"
    return (
        f"{result['model']['name']} ({result['model']['weights']}), {grid}{crops}; "
        f"images: {len(images)} of {sizes}; {where}, {result['options']['precision']}, torch {machine['torch']}"
    )


def _table(result: dict[str, Any]) -> Table:
    contenders, floor = result["contenders"], result["floor"]
    others = [name for name in contenders if name != _OURS]
    table = Table(box=None, pad_edge=False)
    table.add_column("seconds an image")
    for column in [_OURS, *(column for name in others for column in (name, "times")), "floor", "reached"]:
        table.add_column(column, justify="right")
    ours = contenders[_OURS]["stages"]
    for stage in [*STAGES, "total"]:
        seconds = [contenders[name]["stages"].get(stage) for name in others]
        if stage not in ours and not any(seconds):
            continue
        least = floor["stages"].get(stage, {}).get("seconds")
        reached = floor["share_reached"].get(stage) if stage != "total" else None
        name = f"({stage})" if stage in OUTSIDE else "with stages timed" if stage == "total" else stage
        ratios: list[float | None] | None = [None] * len(others) if stage in OUTSIDE else None  # not the same work
        table.add_row(name, *_cells(ours.get(stage), seconds, ratios), _seconds(least), _share(reached))
    table.add_row(
        "end to end",
        *_cells(
            contenders[_OURS]["seconds_an_image"],
            [contenders[name]["seconds_an_image"] for name in others],
            [result["times_faster"][name]["median"] for name in others],
        ),
        _seconds(floor["seconds_an_image"]),
        _share(floor["share_reached"]["total"]),
    )
    for label, key, show in (("peak memory", "peak_memory", _gigabytes), ("masks", "masks", _mean)):
        cells = [show(contenders[_OURS][key])]
        for name in others:
            cells += [show(contenders[name][key]), ""]
        table.add_row(label, *cells, "", "")
    return table


def _cells(ours: float | None, others: list[float | None], ratios: list[float | None] | None = None) -> list[str]:
    cells = [_seconds(ours)]
    for i, other in enumerate(others):
        ratio = ratios[i] if ratios else other / ours if ours and other else None
        cells += [_seconds(other), f"{ratio:.3g}" if ratio is not None else _NONE]
    return cells


def _notes(result: dict[str, Any]) -> Iterator[str]:
    for name, reason in result["absent"].items():
        yield f"{name}: not measured: {reason}"
    for name, parity in result["parity"].items():
        yield f"parity with {name}: {_parity(parity)}"
    counts = result["candidates"]
    candidates = sum(count["candidates"] for count in counts)
    passed = candidates - sum(count["rejected_iou"] for count in counts)
    stable = passed - sum(count["rejected_stability"] for count in counts)
    yield f"masks above the predicted-IoU threshold: {passed:,} of {candidates:,}; of these stable: {stable:,}"
    rates = result["floor"]["attainable"]
    products = ", ".join(f"{name} {value / 1e12:.3g} TFLOP/s" for name, value in rates["operations"].items())
    work = result["floor"]["stages"].values()
    yield (
        f"floor: {sum(each['operations'] for each in work) / 1e12:.3g} TFLOP and "
        f"{sum(each['bytes'] for each in work) / 1e9:.3g} GB at what was measured here: {products}, "
        f"copies {rates['bandwidth'] / 1e9:.3g} GB/s"
    )


def _parity(parity: dict[str, Any]) -> str:
    orderly, matched = parity["in_order"], parity["matched"]
    if orderly and orderly["perfect"]:
        return f"all {orderly['masks']:,} masks equal, in the same order"
    if orderly and orderly["masks"] == orderly["reference_masks"] and not orderly["displaced"]:
        return (
            f"{orderly['equal_runs']:,} of {orderly['masks']:,} masks equal, in the same order; "
            f"pixels that differ in the others: {orderly['different_pixels']:,}"
        )
    recall = ", ".join(f"{share:.2%} at {at}" for at, share in matched["recall_of_reference"].items())
    back = ", ".join(f"{share:.2%} at {at}" for at, share in matched["recall_of_ours"].items())
    return (
        f"{matched['masks']:,} masks for {matched['reference_masks']:,}; theirs found here by IoU: {recall}; "
        f"ours found there: {back}; {matched['lost']:,} lost, {matched['extra']:,} extra, of these "
        f"{matched['at_a_threshold']:,} at a threshold, {matched['linked']:,} linked, "
        f"{matched['unexplained']:,} unexplained"
    )


def _seconds(value: float | None) -> str:
    if value is None:
        return _NONE
    for least, digits in ((10, 2), (0.1, 3), (0.001, 4)):
        if value >= least:
            return f"{value:.{digits}f}"
    return f"{value:.1e}"


def _share(value: float | None) -> str:
    return f"{value:.1%}" if value is not None else _NONE


def _gigabytes(value: int | None) -> str:
    return f"{value / 1e9:.2f} GB" if value is not None else _NONE


def _mean(values: list[int]) -> str:
    return f"{sum(values) / len(values):.4g}" if values else _NONE
