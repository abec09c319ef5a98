"""How good a model is on photographs that the loop never trains on."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from data_engine.errors import UsageError
from data_engine.evaluation.ground_truth import GroundTruth
from data_engine.evaluation.layouts import open_ground_truth
from data_engine.evaluation.optional import optional
from data_engine.evaluation.report import as_json, shown_name
from data_engine.evaluation.run import EvaluationSettings, measure
from data_engine.loop.settings import LoopSettings
from data_engine.sam.segmenter import load_segmenter


def held_out(settings: LoopSettings, trained_on: Iterable[str] = ()) -> GroundTruth:
    """The ground truth without the images in `trained_on`, by file name.

    Raises UsageError where there is none, or where every image of it is trained on.
    """
    plan = settings.evaluation
    if plan.data is None:
        raise UsageError(
            "a loop needs photographs with ground truth that it does not train on: --set evaluation.data=FOLDER"
        )
    truth = open_ground_truth(plan.data, plan.ground_truth)
    names = {name.rsplit("/", 1)[-1] for name in trained_on}
    kept = [entry for entry in truth.entries if entry.file_name not in names]
    if not kept:
        raise UsageError(
            f"{truth.source}: every image of it is in the loop's input; hold some back, or name other ground truth"
        )
    return replace(truth, entries=kept, left_out=len(truth.entries) - len(kept))


def refuse_measured(truth: GroundTruth, trained_on: Iterable[str]) -> None:
    """Raises UsageError where a photograph of the ground truth is trained on, by file name: through people or `mix`."""
    measured = {entry.file_name for entry in truth.entries}
    both = sorted(measured.intersection(name.rsplit("/", 1)[-1] for name in trained_on))
    if both:
        raise UsageError(
            f"{len(both):,} photographs, such as {both[0]}, would be trained on and measured on: leave them out of "
            f"the masks of people and of `mix`, or out of {truth.source}"
        )


def evaluate(
    settings: LoopSettings,
    model: str,
    truth: GroundTruth,
    progress: Callable[[int, int], None],
) -> dict[str, Any]:
    """What `data-engine evaluate` writes for `model`, without baselines."""
    job, asked = settings.job(model), measurement(settings)
    segmenter = load_segmenter(model, job.run.device, job.model.precision)
    return as_json(segmenter, shown_name(model), truth, asked, measure(segmenter, truth, asked, progress))


def measurement(settings: LoopSettings) -> EvaluationSettings:
    """What is measured. Raises UsageError where that is nothing, or a package is missing."""
    plan = settings.evaluation
    if plan.clicks:
        optional("scipy.ndimage")
    return EvaluationSettings(
        clicks=plan.clicks,
        boxes=plan.boxes,
        baselines=False,
        automatic=settings.job(settings.model).masks if plan.automatic else None,
        limit=plan.limit,
        masks_per_image=plan.masks_per_image,
        smallest_share=plan.smallest_share,
        seed=plan.seed,
    )
