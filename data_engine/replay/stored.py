"""Images with all the candidates that a run kept of them, as the filters met them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from data_engine.dataset.commits import CommitRecord
from data_engine.dataset.reader import DatasetImage, MaskDataset
from data_engine.dataset.rejects import keeps_rejects, reject_rows
from data_engine.dataset.schema import REJECTS
from data_engine.errors import DatasetError
from data_engine.masks import rle
from data_engine.masks.candidates import Candidates
from data_engine.masks.grid import CropWindow, crop_windows
from data_engine.masks.prompting import near_inner_edge
from data_engine.masks.settings import MaskSettings
from data_engine.storage import join


@dataclass(frozen=True, slots=True)
class StoredImage:
    """An image, and N candidates of it above the floor of the predicted IoU."""

    row: dict[str, Any]  # of the images table
    windows: list[CropWindow]  # that the run looked at
    predicted_iou: np.ndarray  # N float32
    stability: np.ndarray  # N float32
    area: np.ndarray  # N int64 pixels
    boxes: np.ndarray  # Nx4 int64 (x0, y0, x1, y1), last pixels inside
    points: np.ndarray  # Nx2 float64
    window: np.ndarray  # N int64, index into `windows`
    on_edge: np.ndarray  # N bool: cut off by its crop
    counts: list[str | None]  # N run lengths; None below the floor of the stability

    def select(self, keep: np.ndarray, verdict: np.ndarray) -> Candidates:
        """Some of them (indices), with their runs. Raises DatasetError where the runs were not kept."""
        height, width = self.row["height"], self.row["width"]
        counts = [self.counts[i] for i in keep.tolist()]
        if None in counts:
            raise DatasetError(f"image {self.row['image_id']!r}: the run lengths of a candidate are missing")
        return Candidates(
            boxes=self.boxes[keep],
            predicted_iou=self.predicted_iou[keep],
            stability=self.stability[keep],
            area=self.area[keep],
            points=self.points[keep],
            window=self.window[keep],
            verdict=verdict[keep],
            number=keep,
            masks=[rle.from_counts_string(each, height, width) for each in counts if each is not None],
        )


def stored_images(
    dataset: MaskDataset, record: CommitRecord, settings: MaskSettings, share: float
) -> Iterator[StoredImage]:
    """The images of a slice that keep their rejects, in order; failed ones, which have none, included.

    settings and share: those of the run.
    """
    kept = reject_rows(dataset, record.rejects) if record.rejects else iter(())
    image_id, rows = next(kept, (None, REJECTS.empty_table()))
    for image in _keeping(dataset, record, share):
        if image.image_id == image_id:
            yield _stored(image, rows, settings)
            image_id, rows = next(kept, (None, REJECTS.empty_table()))
        else:  # failed, or no candidate came above the floor
            yield _stored(image, REJECTS.empty_table(), settings)
    if image_id is not None:
        raise DatasetError(
            f"{join(dataset.root, record.rejects.file if record.rejects else record.file)}: {image_id!r} is not where "
            "the images say; `data-engine audit` shows what is wrong"
        )


def _keeping(dataset: MaskDataset, record: CommitRecord, share: float) -> Iterator[DatasetImage]:
    """The images of a slice that keep their rejects. Of a small share, most masks are not read."""
    if share == 1:
        return dataset.slice(record)
    ids = dataset.image_ids(record)
    return dataset.rows_at(record, [row for row, image_id in enumerate(ids) if keeps_rejects(image_id, share)])


def _stored(image: DatasetImage, rows: pa.Table, settings: MaskSettings) -> StoredImage:
    column = {name: rows[name].to_numpy() for name in _NUMBERS}
    crops = np.stack([column[f"crop_{name}"] for name in ("x", "y", "w", "h", "layer")], 1).astype(np.int64)
    windows: list[CropWindow] = []
    if image.row["status"] == "ok":
        height, width = image.row["height"], image.row["width"]
        windows = crop_windows(height, width, settings.crop_n_layers, settings.crop_overlap_ratio)
    places = {(w.x0, w.y0, w.x1 - w.x0, w.y1 - w.y0, w.layer): i for i, w in enumerate(windows)}
    try:
        window = np.array([places[tuple(crop)] for crop in crops.tolist()], np.int64)
    except KeyError:
        raise DatasetError(
            f"image {image.image_id!r}: it has candidates in crops that its run did not look at"
        ) from None
    area = column["area"].astype(np.int64)
    corner = np.stack([column["bbox_x"], column["bbox_y"]], 1).astype(np.int64)
    size = np.stack([column["bbox_w"], column["bbox_h"]], 1).astype(np.int64)
    # The generator's box of an empty mask is the corner of its crop.
    boxes = np.where(area[:, None] > 0, np.hstack([corner, corner + size - 1]), np.tile(crops[:, :2], 2))
    on_edge = np.zeros(len(area), bool)
    for index in np.unique(window).tolist():
        of_it = window == index
        on_edge[of_it] = near_inner_edge(boxes[of_it], windows[index], image.row["height"], image.row["width"])
    return StoredImage(
        row=image.row,
        windows=windows,
        predicted_iou=column["predicted_iou"],
        stability=column["stability_score"],
        area=area,
        boxes=boxes,
        points=np.stack([column["point_x"], column["point_y"]], 1).astype(np.float64),
        window=window,
        on_edge=on_edge,
        counts=_counts(image, rows),
    )


def _counts(image: DatasetImage, rows: pa.Table) -> list[str | None]:
    """Of a mask that is as it was, its own row has the run lengths."""
    counts: list[str | None] = rows["counts"].to_pylist()
    final = image.masks["counts"]
    for i, mask_id in enumerate(rows["mask_id"].to_pylist()):
        if mask_id is not None and counts[i] is None:
            counts[i] = final[mask_id].as_py()
    return counts


_NUMBERS = [
    *("predicted_iou", "stability_score", "area", "bbox_x", "bbox_y", "bbox_w", "bbox_h", "point_x", "point_y"),
    *("crop_x", "crop_y", "crop_w", "crop_h", "crop_layer"),
]
