"""A replay as a dataset of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from data_engine.config import JobConfig
from data_engine.dataset.commits import CommitRecord, Totals
from data_engine.dataset.reader import MaskDataset
from data_engine.dataset.writer import SliceWriter
from data_engine.masks.settings import MaskSettings
from data_engine.pipeline.plan import JobPlan
from data_engine.pipeline.rows import mask_columns
from data_engine.replay.derived import write_derived
from data_engine.replay.plan import replay_plan
from data_engine.replay.select import Replayed, replay
from data_engine.replay.stored import stored_images


def write_replay(
    dataset: MaskDataset,
    plan: JobPlan,
    config: JobConfig,
    settings: MaskSettings,
    destination: str,
    on_slice: Callable[[CommitRecord], None] = lambda record: None,
) -> Totals:
    """Writes the dataset that a run with `settings` would have made of the images that kept their rejects.

    plan and config: of the run. Goes on where an earlier call stopped; several at once share the work. Raises
    DatasetError for a dataset that is not complete, PlanMismatch where the destination is another job's.
    """

    def fill(source: CommitRecord, writer: SliceWriter) -> Totals:
        totals = Totals()
        for image in stored_images(dataset, source, config.masks, config.output.keep_rejects):
            if image.row["status"] != "ok":
                writer.add(image.row)
                totals = totals + Totals(images=1, failed=1, errors={image.row["error_type"]: 1})
                continue
            found = replay(image, settings)
            writer.add(_image_row(image.row, found), mask_columns(found.masks))
            totals = totals + Totals(images=1, masks=len(found.masks), **asdict(found.masks.filtered))
        return totals

    replayed = replay_plan(dataset, plan, config, settings)
    return write_derived(dataset, replayed, destination, fill, on_slice, stage="replay")


def _image_row(row: dict[str, Any], replayed: Replayed) -> dict[str, Any]:
    counts = {f"n_{name}": count for name, count in replayed.masks.filtered.as_dict().items()}
    return {**row, "n_masks": len(replayed.masks), **counts}
