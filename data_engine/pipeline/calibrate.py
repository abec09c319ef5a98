"""What a job will cost, measured before it is paid for: a few of its images are masked here, the rest is arithmetic."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from data_engine.config import JobConfig
from data_engine.dataset.writer import SliceWriter
from data_engine.errors import SourceError
from data_engine.images.shard import EncodedImage
from data_engine.images.sources import read_shard
from data_engine.masks.floors import Floors
from data_engine.masks.generator import MaskGenerator, PreparedImage
from data_engine.masks.image_masks import ImageMasks
from data_engine.masks.prompting import NonFiniteOutput
from data_engine.pipeline.plan import JobPlan
from data_engine.pipeline.rows import decode_image, image_row, mask_columns, reject_columns
from data_engine.sam.segmenter import load_segmenter

_SHARDS_SAMPLED = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """What the sample took on this device."""

    device: str
    sampled: int  # images, not counting one to warm up
    failed: int
    seconds: tuple[float, ...]  # of the model, an image
    decode_seconds: float  # an image, on one core
    masks: float  # an image
    input_bytes: float  # an image
    output_bytes: float  # an image

    @property
    def seconds_an_image(self) -> float:
        return sum(self.seconds) / len(self.seconds)

    @property
    def error(self) -> float:
        """Standard error of `seconds_an_image`, relative."""
        if len(self.seconds) < 2:
            return math.inf
        mean = self.seconds_an_image
        variance = sum((value - mean) ** 2 for value in self.seconds) / (len(self.seconds) - 1)
        return math.sqrt(variance / len(self.seconds)) / mean


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """The whole job on one device like the one that was measured."""

    images: int
    images_are_counted: bool  # or estimated from the bytes of the shards
    masks: int
    output_bytes: int
    hours: float
    decode_cores: float  # that keep one device busy
    cost: float | None

    @classmethod
    def of(cls, plan: JobPlan, sample: Calibration, price_per_hour: float | None = None) -> Estimate:
        """Raises SourceError where neither the images nor the bytes of the input are known."""
        images = plan.images
        if images is None:
            if not plan.bytes or not sample.input_bytes:
                raise SourceError("the input does not say how large it is: how many images it has cannot be estimated")
            images = round(plan.bytes / sample.input_bytes)
        hours = images * sample.seconds_an_image / 3600
        return cls(
            images=images,
            images_are_counted=plan.images is not None,
            masks=round(images * sample.masks),
            output_bytes=round(images * sample.output_bytes),
            hours=hours,
            decode_cores=sample.decode_seconds / sample.seconds_an_image,
            cost=hours * price_per_hour if price_per_hour is not None else None,
        )


def calibrate(plan: JobPlan, config: JobConfig, count: int) -> Calibration:
    """Masks `count` images from shards spread over the plan, and writes nothing. The first image only warms up.

    Where a share of the images keeps its rejects, every image of the sample is masked with and without them: a hash
    chooses the images, and would choose none of a small sample.
    """
    model = config.model
    segmenter = load_segmenter(model.name, config.run.device, model.precision, compiled=model.compiled)
    generator = MaskGenerator(segmenter, config.masks, memory_budget=config.run.mask_memory)
    masker = _Masker(generator, config.reject_floors, config.output.keep_rejects)
    writer = SliceWriter(plan.metadata())
    seconds: list[float] = []
    decoding, masks, failed, read = 0.0, 0, 0, 0
    warm = False
    for image in _sample(plan, config, count + 1):
        begun = time.perf_counter()
        decoded = decode_image(image, generator, config.input)
        decode_s = time.perf_counter() - begun
        try:
            found, generate_s = masker.mask(decoded.prepared) if decoded.prepared is not None else (None, 0.0)
        except NonFiniteOutput:  # a failed image of the job
            found = None
        if found is None:
            failed += 1
        elif not warm:
            warm = True
        else:
            seconds.append(generate_s)
            decoding += decode_s
            masks += len(found)
            read += len(image.data or b"")
            writer.add(image_row(decoded, "", found, None, generate_s), mask_columns(found), reject_columns(found))
    if not seconds:
        masked = "only one, which warms up," if warm else "none"
        raise SourceError(f"{plan.input}: {masked} of the first {failed + warm} images sampled could be masked")
    written = sum(len(file.data) for file in writer.finish())
    rejects = writer.finish_rejects()
    kept = config.output.keep_rejects * len(rejects.data) if rejects else 0
    return Calibration(
        device=str(segmenter.device),
        sampled=len(seconds),
        failed=failed,
        seconds=tuple(seconds),
        decode_seconds=decoding / len(seconds),
        masks=masks / len(seconds),
        input_bytes=read / len(seconds),
        output_bytes=(written + kept) / len(seconds),
    )


class _Masker:
    """Masks an image as the job would on average: `share` of the images keep their rejects, which takes longer."""

    def __init__(self, generator: MaskGenerator, floors: Floors, share: float) -> None:
        self._generator, self._floors, self._share = generator, floors, share

    def mask(self, image: PreparedImage) -> tuple[ImageMasks, float]:
        """Its masks, with rejects if any image keeps them, and seconds. Raises NonFiniteOutput."""
        found, seconds = self._timed(image, None) if self._share < 1 else (None, 0.0)
        if found is not None and not self._share:
            return found, seconds
        found, longer = self._timed(image, self._floors)
        return found, (1 - self._share) * seconds + self._share * longer

    def _timed(self, image: PreparedImage, floors: Floors | None) -> tuple[ImageMasks, float]:
        begun = time.perf_counter()
        found = self._generator.run(image, floors=floors)
        return found, time.perf_counter() - begun


def _sample(plan: JobPlan, config: JobConfig, count: int) -> Iterator[EncodedImage]:
    """The first images of some shards, as equally spread as they come, until there are `count`."""
    stride = max(1, len(plan.shards) // _SHARDS_SAMPLED)
    chosen = plan.shards[::stride]
    each = math.ceil(count / len(chosen))
    readers = [islice(read_shard(planned.shard, config.input), min(each, planned.images or each)) for planned in chosen]
    yield from islice((image for reader in readers for image in reader), count)
