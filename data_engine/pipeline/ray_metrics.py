"""Metrics of a cluster job, exported by Ray to Prometheus under these names with the prefix `ray_`.

Labels stay few: shard and image ids are in the logs, not here. infra/monitoring has a dashboard for them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import torch
from ray.util.metrics import Counter, Gauge

from data_engine.pipeline.events import Event, ImageDone, SliceCommitted

_GAUGES_EVERY_S = 5.0


class WorkerMetrics:
    """What one worker does."""

    def __init__(self, waiting: Callable[[], int]) -> None:
        self._waiting = waiting
        self._images = Counter("data_engine_images_total", "images by status: ok or failed", ("status",))
        self._masks = Counter("data_engine_masks_total", "masks found")
        self._failures = Counter("data_engine_failures_total", "failed images by type of error", ("type",))
        self._stages = Counter(
            "data_engine_stage_seconds_total",
            "seconds of fetch, decode, encode, generate (prompts to runs) and write; all but the middle two overlap",
            ("stage",),
        )
        self._queue = Gauge("data_engine_queue_depth", "images fetched ahead of the model")
        self._memory = Gauge("data_engine_gpu_memory_bytes", "most GPU memory that tensors have held")
        self._measured = 0.0

    def count(self, event: Event) -> None:
        if isinstance(event, ImageDone):
            self._images.inc(1, {"status": "failed" if event.error_type else "ok"})
            if event.masks:
                self._masks.inc(event.masks)
            if event.error_type:
                self._failures.inc(1, {"type": event.error_type})
            self._measure()
        elif isinstance(event, SliceCommitted):
            for stage, seconds in event.record.timings.items():
                if seconds > 0:
                    self._stages.inc(seconds, {"stage": stage})

    def _measure(self) -> None:
        now = time.monotonic()
        if now - self._measured < _GAUGES_EVERY_S:
            return
        self._measured = now
        self._queue.set(self._waiting())
        if torch.cuda.is_available():
            self._memory.set(torch.cuda.max_memory_allocated())


class DriverMetrics:
    """What the driver knows of shards, workers and retries."""

    def __init__(self) -> None:
        self._shards = Gauge("data_engine_shards", "shards by state", ("state",))
        self._workers = Gauge("data_engine_workers", "workers by state", ("state",))
        self._retries = Counter("data_engine_retries_total", "shards given out again, by cause", ("cause",))
        self._retried: dict[str, int] = {}

    def show(self, shards: Mapping[str, int], workers: Mapping[str, int], retries: Mapping[str, int]) -> None:
        for state, count in shards.items():
            self._shards.set(count, {"state": state})
        for state, count in workers.items():
            self._workers.set(count, {"state": state})
        for cause, count in retries.items():
            if count > self._retried.get(cause, 0):
                self._retries.inc(count - self._retried.get(cause, 0), {"cause": cause})
                self._retried[cause] = count
