"""What was measured, as one table for people and one JSON for machines."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from data_engine.evaluation.answers import Answers
from data_engine.evaluation.average_recall import PROPOSALS
from data_engine.evaluation.baselines import FELZENSZWALB_SCALES, FLOOD_TOLERANCES, chosen_by_size
from data_engine.evaluation.calibration import calibration
from data_engine.evaluation.ground_truth import GroundTruth
from data_engine.evaluation.run import EvaluationSettings, Measured
from data_engine.evaluation.scores import SIZES, size_of
from data_engine.sam.segmenter import SamSegmenter
from data_engine.signed_urls import unsigned

_SETTINGS_OF = {"felzenszwalb": FELZENSZWALB_SCALES, "flood_fill": FLOOD_TOLERANCES}
_PACKAGES = ("data-engine", "torch", "numpy", "pycocotools", "scipy", "scikit-image")

Scores = dict[str, float | None]  # all, small, medium, large, and boundary where it is measured


def shown_name(model: str) -> str:
    """A model as it is named in what is written: the last part of its path or URL, without the secrets of a link."""
    return Path(unsigned(model)).name


def as_json(
    segmenter: SamSegmenter, name: str, truth: GroundTruth, settings: EvaluationSettings, measured: Measured
) -> dict[str, Any]:
    """Plain values. Mean IoUs are over objects, not over images; None where there is no object of a size."""
    checkpoint = segmenter.checkpoint
    return {
        "model": {
            "name": name,
            "sha256": checkpoint.sha256 if checkpoint else None,
            "device": str(segmenter.device),
            "precision": segmenter.precision,
        },
        "data": {
            "ground_truth": truth.source,
            "kind": truth.kind,
            "images_without_counterpart": truth.without,
            "images_left_out": truth.left_out,
            "images_passed_over": measured.passed_over,
        },
        "counts": _counts(measured),
        "settings": asdict(settings),
        "clicks": {str(count): _answers(found, measured.area) for count, found in measured.clicks.items()},
        "boxes": _answers(measured.boxes, measured.area) if measured.boxes else None,
        "automatic": _automatic(measured),
        "calibration": _calibration(measured),
        "baselines": {name: _baseline(name, measured) for name in measured.baselines},
        "seconds": {stage: round(seconds, 2) for stage, seconds in measured.seconds.items()},
        "versions": _versions(),
    }


def as_table(result: dict[str, Any]) -> Table:
    """The table of an `as_json`."""
    counts = result["counts"]
    objects = f"{counts['objects']:,} objects"
    if result["clicks"] or result["boxes"] or result["baselines"]:
        objects = f"{counts['asked']['all']:,} of {objects} asked for"
    table = Table(
        title=f"{result['model']['name']}: {counts['images']:,} images, {objects}",
        title_justify="left",
        box=None,
        pad_edge=False,
    )
    table.add_column("mean IoU")
    for column in ("all", *SIZES, "boundary"):
        table.add_column(column, justify="right")
    for label, scores in _rows(result):
        table.add_row(label, *(_shown(scores.get(column)) for column in ("all", *SIZES, "boundary")))
    return table


def remarks(result: dict[str, Any]) -> list[str]:
    """What is no mean IoU by size, a line each."""
    lines = []
    passed_over = result["data"]["images_passed_over"]
    if passed_over:
        lines.append(f"Not in these figures: {len(passed_over):,} images that cannot be used, such as {passed_over[0]}")
    found = result["calibration"]
    if found:
        rank = "none" if found["spearman"] is None else f"{found['spearman']:.2f}"
        lines.append(
            f"Predicted IoU of one click's three masks: {found['mean_predicted']:.3f} in the mean, true "
            f"{found['mean_true']:.3f}; expected calibration error {found['expected_error']:.3f}; "
            f"rank correlation {rank}"
        )
    if result["automatic"]:
        lines.append(f"Automatic generation: {result['automatic']['masks_per_image']:.1f} masks an image")
    lines.append(f"{result['seconds']['total']:.0f} s on {result['model']['device']}")
    return lines


def _rows(result: dict[str, Any]) -> Iterator[tuple[str, Scores]]:
    prompts = {f"{count} click{'s' * (count != '1')}": found for count, found in result["clicks"].items()}
    if result["boxes"]:
        prompts["box"] = result["boxes"]
    for prompt, found in prompts.items():
        yield f"{prompt}: highest predicted IoU", found["highest_predicted_iou"]
        yield f"{prompt}: best of three", found["best_of_three"]
        yield f"{prompt}: single mask", found["single_mask"]
    for name, found in result["baselines"].items():
        plain = name.replace("_", " ").capitalize()
        yield f"{plain}, 1 click: best of three", found["best_of_three"]
        yield f"{plain}, 1 click: by size prior", found["by_size_prior"]
    if result["automatic"]:
        for proposals in PROPOSALS:
            yield f"automatic: AR@{proposals}", result["automatic"][f"AR@{proposals}"]


def _shown(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _counts(measured: Measured) -> dict[str, Any]:
    sizes = size_of(measured.area)
    by_size = {size: int((sizes == size).sum()) for size in SIZES}
    return {
        "images": measured.images,
        "objects": measured.objects,
        "asked": {"all": len(measured.area), **by_size},
    }


def _answers(found: Answers, area: np.ndarray) -> dict[str, Scores]:
    return {
        "highest_predicted_iou": {**_by_size(found.chosen, area), "boundary": _mean(found.boundary)},
        "best_of_three": _by_size(found.oracle, area),
        "single_mask": {**_by_size(found.single, area), "boundary": _mean(found.boundary_single)},
    }


def _baseline(name: str, measured: Measured) -> dict[str, Scores]:
    """Each setting, the best of the three, and the one that a look at the sizes of all objects would choose."""
    found, area = measured.baselines[name], measured.area
    prior = float(np.median(measured.share))
    by_prior = np.take_along_axis(found.iou, chosen_by_size(found.share, prior)[:, None], 1)[:, 0]
    return {
        "best_of_three": _by_size(found.iou.max(1), area),
        "by_size_prior": _by_size(by_prior, area),
        **{f"{setting:g}": _by_size(found.iou[:, i], area) for i, setting in enumerate(_SETTINGS_OF[name])},
    }


def _automatic(measured: Measured) -> dict[str, Any] | None:
    if measured.average_recall is None:
        return None
    return {
        "masks_per_image": round(measured.generated / max(measured.images, 1), 2),
        **_rounded(measured.average_recall),
    }


def _calibration(measured: Measured) -> dict[str, Any] | None:
    one = measured.clicks.get(1)
    found = calibration(one.predicted.ravel(), one.iou.ravel()) if one else None
    return _rounded(asdict(found)) if found else None


def _by_size(values: np.ndarray, area: np.ndarray) -> Scores:
    sizes = size_of(area)
    return {"all": _mean(values), **{size: _mean(values[sizes == size]) for size in SIZES}}


def _mean(values: np.ndarray) -> float | None:
    return round(float(values.mean()), 4) if len(values) else None


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(item) for item in value]
    return round(value, 4) if isinstance(value, float) else value


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
