"""One of data-engine's own datasets as ground truth: its masks are what an answer is compared with."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from data_engine.dataset.reader import MaskDataset
from data_engine.evaluation.ground_truth import Entry, GroundTruth, Outlines
from data_engine.masks import rle


def dataset_truth(images: Path, root: str) -> GroundTruth:
    """The dataset's images that have masks and are in the folder, by id (the path below the folder) or file name."""
    dataset = MaskDataset(root)
    entries, missing = [], 0
    for row in dataset.images(["image_id", "n_masks"]).sort_by("image_id").to_pylist():
        if not row["n_masks"]:
            continue
        image_id = row["image_id"]
        path = next((path for path in (images / image_id, images / Path(image_id).name) if path.is_file()), None)
        if path is None:
            missing += 1
        else:
            entries.append(Entry(image_id, path, partial(_outlines, dataset, image_id)))
    return GroundTruth("dataset", root, entries, missing)


def _outlines(dataset: MaskDataset, image_id: str) -> Outlines:
    image = dataset[image_id]
    height, width = image.row["height"], image.row["width"]
    return Outlines([rle.from_counts_string(counts, height, width) for counts in image.masks["counts"].to_pylist()], [])
