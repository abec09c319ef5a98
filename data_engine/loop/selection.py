"""Which of a round's masks are trained on, and how many that are."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from data_engine.dataset.reader import MaskDataset
from data_engine.loop.settings import LoopSettings
from data_engine.train.data.labelled import DataFilters


@dataclass(frozen=True, slots=True)
class Selection:
    """Counts of a dataset, before and after the filters."""

    images: int
    masks: int
    images_kept: int
    masks_kept: int


def select(root: str, filters: DataFilters, *, deduplicated: bool) -> Selection:
    """Reads five columns, in a stream."""
    dataset = MaskDataset(root, deduplicated=deduplicated)
    pixels = pc.field("height").cast(pa.float64()) * pc.field("width").cast(pa.float64())
    passes = (
        (pc.field("predicted_iou") >= _as_stored(filters.min_predicted_iou))
        & (pc.field("stability_score") >= _as_stored(filters.min_stability))
        & (pc.field("area") >= filters.min_area)
        & (pc.field("area").cast(pa.float64()) <= pixels * filters.max_area_fraction)
    )
    kept = images_kept = 0
    before = None
    for batch in dataset.scan("masks", ["image_id"], passes):
        kept += batch.num_rows
        if batch.num_rows:
            names = batch["image_id"].unique().to_pylist()  # an image's rows lie together
            images_kept += len(names) - (names[0] == before)
            before = batch["image_id"][-1].as_py()
    totals = dataset.totals
    return Selection(totals.images, totals.masks, images_kept, kept)


def _as_stored(score: float) -> pa.Scalar:
    """As double, a score of 0.95 in float32 would be less than 0.95."""
    return pa.scalar(score, pa.float32())


def training_spec(settings: LoopSettings, number: int, masks: str) -> str:
    """What round `number` trains on, by its stage."""
    stage, parts = settings.stage(number), []
    if stage != "assisted":
        parts.append(f"dataset:{masks}" + ("#dedup" if settings.deduplicate else ""))
    if stage != "automatic":
        parts.append(people_spec(settings, number))
    if settings.mix is not None:
        parts.append(settings.mix)
    return " + ".join(parts)


def people_spec(settings: LoopSettings, number: int) -> str:
    """Where the masks that people made for round `number` are, or will be."""
    assert settings.people is not None  # the settings' own check
    return settings.people.replace("{round}", str(number))
