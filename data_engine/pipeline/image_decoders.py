"""Decode threads: bytes -> RGB -> views for the model, ahead of the image's turn."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import replace
from functools import partial

from data_engine.config import JobConfig
from data_engine.images.fingerprint import sha256
from data_engine.images.shard import EncodedImage
from data_engine.masks.generator import Interrupted, MaskGenerator
from data_engine.pipeline.in_flight import InFlight
from data_engine.pipeline.rows import DecodedImage, Failure, decode_image
from data_engine.pipeline.shard_work import POLL_S, ShardWork
from data_engine.pipeline.stall import Stall


class ImageDecoders:
    """The decode threads of one run."""

    def __init__(
        self, config: JobConfig, generator: MaskGenerator, in_flight: InFlight, stopping: Callable[[], bool]
    ) -> None:
        self._settings = config.input
        self._generator = generator
        self._in_flight = in_flight
        self._stopping = stopping
        self._pool = ThreadPoolExecutor(config.run.decode_threads, thread_name_prefix="decode")

    def begin(self, work: ShardWork, image: EncodedImage) -> Callable[[], DecodedImage]:
        """What gives the decoded image when it is its turn; one of careful work, or alone, is not begun before."""
        reason = work.quarantined.get(image.image_id) or work.left_out.get(image.index)
        if reason is not None:
            digest = sha256(image.data) if image.data is not None else None
            left_out = DecodedImage(image.image_id, image.uri, digest, failure=Failure("worker_died", reason))
            return lambda: left_out
        if work.careful or image.index in work.alone:
            return partial(self._decode, work, image)
        return partial(self._decoded_in_time, image.image_id, self._pool.submit(self._decode, work, image))

    def close(self) -> None:
        """Waits for none: native code may hang in one."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _decoded_in_time(self, image_id: str, decoding: Future[DecodedImage]) -> DecodedImage:
        """Raises Interrupted where it is not decoded before the job is to stop: native code may hang in it."""
        stall = Stall()
        with stall.of(f"decoding {image_id}"):
            while not wait((decoding,), POLL_S).done:
                if self._stopping():
                    raise Interrupted
                stall.mention()
        return decoding.result()

    def _decode(self, work: ShardWork, image: EncodedImage) -> DecodedImage:
        begun = time.perf_counter()
        with self._in_flight.at(work.planned.id, image.index, image.index in work.alone):
            decoded = decode_image(image, self._generator, self._settings)
        return replace(decoded, seconds=time.perf_counter() - begun)
