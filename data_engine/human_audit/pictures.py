"""A picture of every mask of a sample, for sheets that are filled in elsewhere."""

from __future__ import annotations

import io
from collections.abc import Callable

from data_engine.dataset.reader import MaskDataset
from data_engine.errors import DatasetError
from data_engine.human_audit.crop import draw_crop
from data_engine.human_audit.sample import Sample
from data_engine.images.decode import decode
from data_engine.pipeline.commit import put
from data_engine.pipeline.originals import relinked
from data_engine.pipeline.plan import read_plan
from data_engine.storage import join
from data_engine.viewer.originals import Missing, Originals

_NEEDED = ["position", "shard", "slice", "row", "uri", "sha256", "counts", "bbox_x", "bbox_y", "bbox_w", "bbox_h"]


def write_pictures(
    sample: Sample, folder: str, input_uri: str | None = None, on_picture: Callable[[], None] = lambda: None
) -> list[str | None]:
    """Writes `<folder>/0001.jpg`, ... and returns their paths by position; None for an original that is not there.

    input_uri: the input with its links signed anew, where they are signed. Raises DatasetError, UsageError and
    StorageError.
    """
    plan = read_plan(sample.root)
    if plan is None:
        raise DatasetError(f"no dataset at {sample.root}: it has no _plan/job.json")
    records = MaskDataset(sample.root).commits
    numbers = {(record.shard, record.slice): number for number, record in enumerate(records)}
    originals = Originals(relinked(plan, input_uri))
    files: list[str | None] = [None] * sample.facts.masks
    rows = sample.masks.select(_NEEDED).sort_by([("shard", "ascending"), ("slice", "ascending"), ("row", "ascending")])
    for row in rows.to_pylist():  # image by image
        number = numbers.get((row["shard"], row["slice"]))
        data = None if number is None else originals.read(records, number, row["row"], row["uri"], row["sha256"])
        if data is not None and not isinstance(data, Missing):
            box = (row["bbox_x"], row["bbox_y"], row["bbox_w"], row["bbox_h"])
            buffer = io.BytesIO()
            draw_crop(decode(data, originals.settings), row["counts"], box).save(buffer, "JPEG", quality=90)
            uri = join(folder, f"{row['position'] + 1:04d}.jpg")
            put(uri, buffer.getvalue())
            files[row["position"]] = uri
        on_picture()
    return files
