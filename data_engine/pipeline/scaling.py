"""How images per second grow with the workers of a cluster: the same images, masked with more and more of them."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from data_engine.config import JobConfig
from data_engine.errors import UsageError
from data_engine.pipeline.events import Event, ImageDone
from data_engine.pipeline.job import generate
from data_engine.pipeline.progress import Progress
from data_engine.storage import join


@dataclass(frozen=True, slots=True, kw_only=True)
class ScalingPoint:
    workers: int
    images: int
    seconds: float  # from the first image done to the last: without loading models
    start_seconds: float  # until the first image was done
    efficiency: float  # images per second and worker, relative to the smallest number of workers

    @property
    def images_per_second(self) -> float:
        return (self.images - 1) / self.seconds


class Stopwatch(Progress):
    """Shows nothing and notes when images were done."""

    def __init__(self) -> None:
        super().__init__(None)
        self.begun = time.monotonic()
        self.times: list[float] = []

    def event(self, event: Event) -> None:
        super().event(event)
        if isinstance(event, ImageDone):
            self.times.append(time.monotonic())


def measure_scaling(
    input_uri: str, scratch: str, config: JobConfig, workers: Iterable[int], images: int
) -> Iterator[ScalingPoint]:
    """Masks the first `images` images once for each number of workers, each time into a new dataset in `scratch`.

    Shards are what workers share: the input needs several times as many as the most workers. Raises UsageError if not.
    """
    baseline: float | None = None
    for count in sorted(workers):
        ray = config.run.ray.model_copy(update={"workers": count, "speculate": False})
        run = config.run.model_copy(update={"engine": "ray", "ray": ray})
        watch = Stopwatch()
        output = join(scratch, f"workers-{count}-{int(time.time())}")
        report = generate(input_uri, output, config.model_copy(update={"run": run}), limit=images, progress=watch)
        if len(report.plan.shards) < count:
            raise UsageError(
                f"{input_uri}: {images} images are in {len(report.plan.shards)} shards, too few for {count} workers; "
                "take more images, or smaller shards (input.images_per_shard)"
            )
        seconds = watch.times[-1] - watch.times[0]
        each = (len(watch.times) - 1) / seconds / count
        baseline = baseline or each
        yield ScalingPoint(
            workers=count,
            images=len(watch.times),
            seconds=seconds,
            start_seconds=watch.times[0] - watch.begun,
            efficiency=each / baseline,
        )
