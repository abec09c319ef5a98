"""The categories of a dataset: the labels of a labelled run, or one for all masks."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial

from data_engine.dataset.commits import CommitRecord
from data_engine.dataset.export.format import OBJECT
from data_engine.dataset.reader import READERS, MaskDataset


def categories_of(dataset: MaskDataset) -> tuple[str, ...]:
    """Labels in alphabetical order, and "object" where masks have none; of masks that are left out, too.

    Reads one column, which is mostly null, of many slices at a time.
    """
    labels: set[str | None] = set()
    with ThreadPoolExecutor(READERS, thread_name_prefix="labels") as pool:
        labels.update(*pool.map(partial(_labels, dataset), dataset.commits))
    named = sorted(label for label in labels if label is not None)
    return tuple(named if named and None not in labels else [*(n for n in named if n != OBJECT), OBJECT])


def _labels(dataset: MaskDataset, record: CommitRecord) -> set[str | None]:
    columns = [rows["label"] for rows in dataset.batches(record.masks, ["label"])]
    return {label for column in columns for label in column.unique().to_pylist()}
