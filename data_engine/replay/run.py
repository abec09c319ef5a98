"""Trying settings on a dataset's stored candidates."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import islice

import numpy as np

from data_engine.config import JobConfig
from data_engine.dataset.reader import MaskDataset
from data_engine.masks.settings import MaskSettings
from data_engine.replay.judged import Judged
from data_engine.replay.outcome import Outcome
from data_engine.replay.select import replay
from data_engine.replay.stored import stored_images

OWN = "as run"


def try_settings(
    dataset: MaskDataset,
    config: JobConfig,
    tries: Mapping[str, MaskSettings],
    *,
    limit: int | None = None,
    judged: Judged | None = None,
    on_image: Callable[[], None] = lambda: None,
) -> list[Outcome]:
    """The run's own settings, then each of `tries` by its label, over the images that kept their rejects.

    config: of the run. judged: is told which of its masks stay. Failed images are left out. Each image is read once,
    whatever the number of tries.
    """
    outcomes = {label: Outcome(label) for label in (OWN, *tries)}
    images = (
        image
        for record in dataset.commits
        for image in stored_images(dataset, record, config.masks, config.output.keep_rejects)
        if image.row["status"] == "ok"
    )
    for image in islice(images, limit):
        own = replay(image, config.masks)
        for label, outcome in outcomes.items():
            replayed = own if label == OWN else replay(image, tries[label])
            outcome.add(replayed, own)
            if judged is not None:  # at the run's own settings, a mask's place is its mask_id
                judged.add(label, image.row["image_id"], np.isin(own.numbers, replayed.numbers))
        on_image()
    return list(outcomes.values())
