"""The categories of a dataset: the labels of a labelled run, or one for all masks."""

from __future__ import annotations

from data_engine.dataset.export.format import OBJECT
from data_engine.dataset.reader import MaskDataset


def categories_of(dataset: MaskDataset) -> tuple[str, ...]:
    """Labels in alphabetical order, and "object" where masks have none. Streams one column, which is mostly null."""
    labels: set[str | None] = set()
    for batch in dataset.scan("masks", ["label"]):
        column = batch["label"]
        labels.update((None,) if column.null_count == len(column) else column.unique().to_pylist())
    named = sorted(label for label in labels if label is not None)
    return tuple(named if named and None not in labels else [*(n for n in named if n != OBJECT), OBJECT])
