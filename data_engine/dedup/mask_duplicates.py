"""Masks that are the same within an image, whichever crop they were seen in: by the IoU of their runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np
import pyarrow as pa
from rlemasklib import RLEMask

from data_engine.dataset.commits import CommitRecord
from data_engine.dataset.duplicates import MASK_DUPLICATES
from data_engine.dataset.export.job import open_dataset
from data_engine.dataset.export.pool import in_order
from data_engine.dataset.reader import DatasetImage, MaskDataset
from data_engine.masks.suppress import mask_nms

_REMEDY = "use fewer --threads"
_WORTH_PROCESSES = 1_000_000  # masks: of fewer, starting processes takes longer than comparing


def mask_duplicates(
    dataset: MaskDataset, records: Sequence[CommitRecord], iou_threshold: float, processes: int
) -> Iterator[pa.Table]:
    """What `find_mask_duplicates` finds in each of these committed slices, in their order."""
    if sum(record.totals.masks for record in records) < _WORTH_PROCESSES:
        processes = 1
    if processes < 2:  # the dataset is open already
        return (find_mask_duplicates(dataset, record, iou_threshold) for record in records)
    return in_order(partial(_of_slice, dataset.root, iou_threshold), records, processes, remedy=_REMEDY)


def _of_slice(root: str, iou_threshold: float, record: CommitRecord, _: Callable[[], None]) -> pa.Table:
    return find_mask_duplicates(open_dataset(root, False), record, iou_threshold)


def find_mask_duplicates(dataset: MaskDataset, record: CommitRecord, iou_threshold: float) -> pa.Table:
    """The duplicates among the masks of one committed slice, with the schema MASK_DUPLICATES.

    A mask goes when its IoU with a better one of its image that stays exceeds the threshold. Better is the higher
    predicted IoU, then the smaller mask_id.
    """
    columns: dict[str, list] = {name: [] for name in MASK_DUPLICATES.names}
    for image in dataset.slice(record):
        for mask_id, of, iou in duplicates_within(image, iou_threshold):
            for name, value in zip(MASK_DUPLICATES.names, (image.image_id, mask_id, of, iou), strict=True):
                columns[name].append(value)
    return pa.table(columns, schema=MASK_DUPLICATES)


def duplicates_within(image: DatasetImage, iou_threshold: float) -> list[tuple[int, int, float]]:
    """(mask_id, mask_id of the mask that stays, IoU of the two), by mask_id."""
    rows = image.masks
    if len(image) < 2:
        return []
    x, y, w, h = (rows[name].to_numpy() for name in ("bbox_x", "bbox_y", "bbox_w", "bbox_h"))
    boxes = np.stack([x, y, x + w - 1, y + h - 1], axis=1)
    size = [image.row["height"], image.row["width"]]
    masks = [RLEMask.from_dict({"size": size, "counts": c.encode("ascii")}) for c in rows["counts"].to_pylist()]
    kept = mask_nms(masks, boxes, rows["area"].to_numpy(), rows["predicted_iou"].to_numpy(), iou_threshold)
    gone = np.setdiff1d(np.arange(len(masks)), kept)
    if not len(gone):
        return []
    ious = RLEMask.iou_matrix([masks[i] for i in gone], [masks[i] for i in kept])
    ids = rows["mask_id"].to_numpy()
    of, iou = ids[kept[ious.argmax(axis=1)]], ious.max(axis=1)
    return list(zip(ids[gone].tolist(), of.tolist(), iou.tolist(), strict=True))
