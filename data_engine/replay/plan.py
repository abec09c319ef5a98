"""The plan of a dataset that is a replay of another: the same input and model, other thresholds."""

from __future__ import annotations

from dataclasses import replace

from data_engine.config import JobConfig
from data_engine.dataset.reader import MaskDataset
from data_engine.dataset.rejects import keeps_rejects
from data_engine.errors import DatasetError
from data_engine.masks.settings import MaskSettings
from data_engine.pipeline.plan import JobPlan, input_name
from data_engine.replay.derived import kept_shards


def replay_plan(dataset: MaskDataset, plan: JobPlan, config: JobConfig, settings: MaskSettings) -> JobPlan:
    """Without the images that did not keep their rejects, and without shards in which none did.

    plan and config: of the run. Raises DatasetError for a dataset that is not complete.
    """
    if not dataset.complete:
        raise DatasetError(f"{dataset.root} is not complete: finish it with the generate command, then replay it")
    share = config.output.keep_rejects
    output = config.output.model_copy(
        update={"keep_rejects": 0.0, "reject_floor_iou": None, "reject_floor_stability": None}
    )
    content = config.model_copy(update={"masks": settings, "output": output}).content()
    return replace(
        plan,
        config=content,
        shards=plan.shards if share == 1 else kept_shards(dataset, plan, lambda image: keeps_rejects(image, share)),
        replayed_from={
            "dataset": input_name(dataset.root),
            "fingerprint": plan.fingerprint,
            "keep_rejects": share,
        },
    )
