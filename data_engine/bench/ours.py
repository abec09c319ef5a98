"""This package's own generator as a contender."""

from __future__ import annotations

from typing import Any

import numpy as np

from data_engine.bench.clock import OTHER, StageClock
from data_engine.bench.contender import Records
from data_engine.bench.photographs import Photograph
from data_engine.dataset.writer import SliceWriter
from data_engine.images.decode import decode
from data_engine.images.settings import InputSettings
from data_engine.masks.generator import MaskGenerator
from data_engine.masks.image_masks import ImageMasks
from data_engine.masks.settings import MaskSettings
from data_engine.pipeline.rows import DecodedImage, image_row, mask_columns
from data_engine.sam.segmenter import SamSegmenter


class Ours:
    name = "here"

    def __init__(self, segmenter: SamSegmenter, settings: MaskSettings) -> None:
        self._generator = MaskGenerator(segmenter, settings, output_mode="coco_rle")

    def generate(self, image: np.ndarray) -> ImageMasks:
        return self._generator.run(self._generator.prepare(image))

    def records(self, generated: Any) -> Records:
        return generated.records("coco_rle")

    def stages(self, photograph: Photograph) -> dict[str, float]:
        """Written are the rows of a dataset, as Parquet."""
        generator, clock = self._generator, StageClock(self._generator.segmenter.device)
        with clock.stage("decode"):
            pixels = decode(photograph.data, InputSettings())
        with clock.stage("resize"):
            prepared = generator.prepare(pixels)
        generator.stages.reset()
        generator.stages.synchronise = True
        with clock.stage("run"):
            masks = generator.run(prepared)
        generator.stages.synchronise = False
        _parquet(photograph, masks)  # a process's first one sets up much
        with clock.stage("write"):
            _parquet(photograph, masks)
        inside = dict(generator.stages.seconds)
        around = {name: clock.seconds[name] for name in ("decode", "resize", "write")}
        return {**around, **inside, OTHER: max(0.0, clock.seconds["run"] - sum(inside.values()))}


def _parquet(photograph: Photograph, masks: ImageMasks) -> int:
    """Bytes of the two files of a dataset that the image makes."""
    image = DecodedImage(photograph.image_id, photograph.image_id, bytes(32), 0, width=masks.width, height=masks.height)
    writer = SliceWriter({})
    writer.add(image_row(image, "", masks, None, None), mask_columns(masks))
    return sum(len(file.data) for file in writer.finish())
