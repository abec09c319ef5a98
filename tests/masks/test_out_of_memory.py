"""Running out of memory anywhere in a chunk: done again with fewer prompts, with the same masks and counts."""

from __future__ import annotations

import gc
import logging
import weakref
from typing import Any

import pytest
import torch
from parity.planted import PlantedSegmenter, picture

from data_engine.masks.candidates import Patch
from data_engine.masks.generator import MaskGenerator
from data_engine.masks.image_masks import ImageMasks
from data_engine.masks.upsample import Upsampler

SETTINGS: dict[str, Any] = {"points_per_side": 10, "stability_score_thresh": 0.6, "crop_n_layers": 1}
IMAGE = picture(180, 250)
ERROR = "CUDA out of memory"


def run(generator: MaskGenerator | None = None) -> ImageMasks:
    generator = generator or MaskGenerator(PlantedSegmenter(), **SETTINGS)
    return generator.run(generator.prepare(IMAGE))


def same(a: ImageMasks, b: ImageMasks) -> bool:
    return a.counts == b.counts and a.filtered == b.filtered and a.points.tolist() == b.points.tolist()


@pytest.mark.parametrize("where", ["measuring", "keeping"])
@pytest.mark.parametrize("failures", [1, 3])
def test_after_the_decoder(where: str, failures: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the chunk that failed may be counted twice."""
    expected, left = run(), [failures]
    holder, name = (Upsampler, "measure") if where == "measuring" else (Patch, "__init__")
    real = getattr(holder, name)

    def failing(*args: Any) -> Any:
        if left[0]:
            left[0] -= 1
            raise torch.OutOfMemoryError(ERROR)
        return real(*args)

    monkeypatch.setattr(holder, name, failing)
    assert same(run(), expected)
    assert left == [0]


def test_the_size_that_fits_is_kept_for_the_next_image_and_reported(caplog: pytest.LogCaptureFixture) -> None:
    segmenter = _Small()
    generator = MaskGenerator(segmenter, **SETTINGS)
    with caplog.at_level(logging.WARNING):
        first, second = run(generator), run(generator)
    assert same(first, run())
    assert same(second, first)
    assert segmenter.refused == 2
    assert caplog.messages == [
        "out of memory with 48 prompts at a time: going on with 24",
        "out of memory with 24 prompts at a time: going on with 12",
    ]


class _Small(PlantedSegmenter):
    """Room for 12 prompts."""

    refused = 0
    held: weakref.ref | None = None

    def decode(self, *args: Any, points: torch.Tensor, **prompts: Any) -> Any:
        if len(points) > 12:
            self.refused += 1
            taken = torch.zeros(3)
            self.held = weakref.ref(taken)
            raise torch.OutOfMemoryError(ERROR)
        return super().decode(*args, points=points, **prompts)


def test_what_the_failed_try_held_is_free_before_the_cache_is_emptied(monkeypatch: pytest.MonkeyPatch) -> None:
    segmenter, freed = _Small(), []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: freed.append(segmenter.held() is None))
    gc.disable()  # a collection by chance would hide it
    try:
        run(MaskGenerator(segmenter, **SETTINGS))
    finally:
        gc.enable()
    assert freed == [True, True]
