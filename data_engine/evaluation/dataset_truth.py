"""One of data-engine's own datasets as ground truth: its masks are what an answer is compared with."""

from __future__ import annotations

from functools import partial

from data_engine.dataset.reader import MaskDataset
from data_engine.evaluation.ground_truth import Entry, GroundTruth, Outlines
from data_engine.evaluation.photographs import Photographs
from data_engine.masks import rle
from data_engine.storage import redact


def dataset_truth(images: str, root: str) -> GroundTruth:
    """The dataset's images that have masks and are in the folder, by id (the path below the folder) or file name.

    Both are paths or URLs.
    """
    dataset = MaskDataset(root)
    rows = dataset.images(["image_id", "n_masks"]).sort_by("image_id").to_pylist()
    ids = [row["image_id"] for row in rows if row["n_masks"]]
    photographs = Photographs(images, recursive=any("/" in image_id for image_id in ids))
    entries, missing = [], 0
    for image_id in ids:
        picture = photographs.find(image_id) or photographs.find(image_id.rsplit("/", 1)[-1])
        if picture is None:
            missing += 1
        else:
            entries.append(Entry(image_id, picture, partial(_outlines, dataset, image_id)))
    return GroundTruth("dataset", redact(root), entries, missing)


def _outlines(dataset: MaskDataset, image_id: str) -> Outlines:
    image = dataset[image_id]
    height, width = image.row["height"], image.row["width"]
    return Outlines([rle.from_counts_string(counts, height, width) for counts in image.masks["counts"].to_pylist()], [])
