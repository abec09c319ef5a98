"""The plan of a dataset that is a replay of another: the same input and model, other thresholds."""

from __future__ import annotations

from dataclasses import replace

from data_engine.config import JobConfig
from data_engine.dataset.reader import MaskDataset
from data_engine.dataset.rejects import keeps_rejects
from data_engine.errors import DatasetError
from data_engine.images.shard import FileEntry
from data_engine.masks.settings import MaskSettings
from data_engine.pipeline.plan import JobPlan, PlannedShard, input_name


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
        shards=plan.shards if share == 1 else _kept(dataset, plan, share),
        replayed_from={
            "dataset": input_name(dataset.root),
            "fingerprint": plan.fingerprint,
            "keep_rejects": share,
        },
    )


def _kept(dataset: MaskDataset, plan: JobPlan, share: float) -> tuple[PlannedShard, ...]:
    """The shards as far as their images kept rejects: of listed files those files, of others how many images."""
    counts: dict[str, int] = {}
    for record in dataset.commits:
        kept = sum(keeps_rejects(image_id, share) for image_id in dataset.image_ids(record))
        counts[record.shard] = counts.get(record.shard, 0) + kept
    return tuple(_only_kept(planned, counts[planned.id], share) for planned in plan.shards if counts.get(planned.id))


def _only_kept(planned: PlannedShard, count: int, share: float) -> PlannedShard:
    shard = planned.shard
    if not shard.files:
        return PlannedShard(shard, take=count)
    files = tuple(file for file in shard.files[: planned.take] if keeps_rejects(file.image_id, share))
    return PlannedShard(replace(shard, files=files, images=len(files), size=_bytes(files)))


def _bytes(files: tuple[FileEntry, ...]) -> int | None:
    sizes = [file.size for file in files]
    return None if None in sizes else sum(size for size in sizes if size is not None)
