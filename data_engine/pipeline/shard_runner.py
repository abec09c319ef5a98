"""Shards in, commits out: fetch, decode, model and write overlap, and nothing is visible before it is whole.

    reader thread        fetches bytes, in the shard's order (shard_reader.py)
    decode threads       bytes -> RGB -> views for the model (image_decoders.py)
    the calling thread   runs the model (image_masker.py), so that its events and signals arrive where they are expected
    writer thread        compresses, writes, commits (slice_committer.py)

The stream runs across shards, so the next shard is fetched while the model is busy with this one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import asdict
from queue import Empty, Queue
from typing import Any

from data_engine.config import JobConfig
from data_engine.dataset.commits import Totals
from data_engine.errors import DeviceLost
from data_engine.images.web_reach import WebReach
from data_engine.masks.generator import Interrupted, MaskGenerator
from data_engine.masks.image_masks import ImageMasks
from data_engine.pipeline.commit import new_owner
from data_engine.pipeline.events import BatchShrunk, Event, ImageDone, ImageStarted, ShardDone, ShardFailed
from data_engine.pipeline.image_decoders import ImageDecoders
from data_engine.pipeline.image_masker import ImageMasker
from data_engine.pipeline.in_flight import InFlight
from data_engine.pipeline.logs import log_fields
from data_engine.pipeline.plan import JobPlan
from data_engine.pipeline.rows import Failure, image_row, mask_columns, reject_columns
from data_engine.pipeline.shard_reader import ShardReader
from data_engine.pipeline.shard_work import POLL_S, FetchedImage, Given, Item, ShardEnd
from data_engine.pipeline.slice_committer import Destination, OpenSlice, SliceCommitter
from data_engine.pipeline.stall import Stall

_SLICES_IN_WRITING = 2


class ShardRunner:
    """Runs shards of one plan with one model. One at a time in a process."""

    def __init__(
        self,
        root: str,
        plan: JobPlan,
        config: JobConfig,
        generator: MaskGenerator,
        stopping: Callable[[], bool] = lambda: False,
        metadata: dict[str, Any] | None = None,
        in_flight: InFlight | None = None,
    ) -> None:
        """`stopping` is asked between images and between chunks of prompts; once true, `run` ends soon.

        `metadata` is the plan's, for a plan that comes without its shards. `in_flight` is told of every image.
        """
        self._plan = plan
        self._config = config
        self._generator = generator
        self._stopping = stopping
        self._masker = ImageMasker(config, generator, stopping)
        self._destination = Destination(root, new_owner(), metadata or plan.metadata(), config.run.single_writer)
        self._in_flight = in_flight or InFlight()
        self._reading = Stall()
        self._web = WebReach(config.input)
        self._items: Queue[Item] = Queue()
        self._points_at_once = generator.points_at_once

    def waiting(self) -> int:
        """Images fetched ahead of the model."""
        return self._items.qsize()

    def run(self, work: Iterable[Given]) -> Generator[Event, None, None]:
        """Works through the shards, reporting as it goes; ends early, without error, once `stopping`.

        What stands among the shards for one that needs no work, or cannot be begun, is reported in its turn.
        Raises StorageError when the output cannot be written, ModelFailure when the model fails on everything, and
        DeviceLost, once the images before it are committed, when this process cannot use its device any more.
        A shard that cannot be read is a ShardFailed event, an image that cannot be masked an ImageDone with an error.
        """
        decoders = ImageDecoders(self._config, self._generator, self._in_flight, self._stopping)
        reader = ShardReader(work, self._config, decoders, self._reading, self._in_flight, self._web)
        committer = SliceCommitter(self._destination, self._in_flight)
        self._items = reader.items
        reader.start()
        at_once = False
        try:
            yield from self._consume(reader, committer)
        except KeyboardInterrupt:
            at_once = True  # though the store may be away for minutes: what is being written will be whole or not there
            raise
        finally:
            reader.close()
            committer.close(wait=not at_once)

    def _consume(self, reader: ShardReader, committer: SliceCommitter) -> Iterator[Event]:
        current: OpenSlice | None = None
        lost: DeviceLost | None = None
        while True:
            yield from committer.finished(most_waiting=_SLICES_IN_WRITING)
            try:
                item = reader.items.get(timeout=POLL_S)
            except Empty:
                if self._stopping():
                    break
                if current is not None and self._is_old(current):  # what is masked does not wait for what is not read
                    current = committer.turn_over(current)
                self._reading.mention()
                continue
            if isinstance(item, BaseException):
                raise item
            if item is None or self._stopping():
                break
            if isinstance(item, (ShardDone, ShardFailed)):
                yield item
                continue
            if item.work.left.is_set():  # what was read ahead of a shard that is no longer ours
                if isinstance(item, FetchedImage):
                    reader.through(item)
                current = None
                continue
            if current is None:
                current = committer.open(item.work, item.work.start.slice, item.work.start.image)
            elif isinstance(item, FetchedImage) and self._is_full(current):
                current = committer.turn_over(current)
            if isinstance(item, FetchedImage):
                yield ImageStarted(item.work.planned.id, item.image_id)
                try:
                    yield self._mask(item, current, committer)
                except Interrupted:
                    break
                except DeviceLost as error:
                    lost = error
                    break
                finally:
                    reader.through(item)
                if self._generator.points_at_once < self._points_at_once:
                    self._points_at_once = self._generator.points_at_once
                    yield BatchShrunk(self._points_at_once)
                continue
            yield from self._end(item, current, committer)
            current = None
        if current is not None and current.totals.images:  # stopped or device lost: what is masked is kept
            committer.commit(current, final=False)
        yield from committer.finished(most_waiting=0)
        if lost is not None:
            raise lost

    def _is_full(self, current: OpenSlice) -> bool:
        return current.totals.images == self._plan.images_per_commit or self._is_old(current)

    def _is_old(self, current: OpenSlice) -> bool:
        return current.totals.images > 0 and time.monotonic() - current.opened > self._config.run.commit_seconds

    def _end(self, end: ShardEnd, current: OpenSlice, committer: SliceCommitter) -> Iterator[Event]:
        if end.failure is None:
            committer.commit(current, final=True, damage=end.damage)
            return
        if current.totals.images and not end.changed:
            committer.commit(current, final=False)
        shard = end.work.planned.shard
        yield ShardFailed(shard.id, shard.uri, end.failure, permanent=end.changed, of_store=end.away)

    def _mask(self, item: FetchedImage, current: OpenSlice, committer: SliceCommitter) -> ImageDone:
        if item.alone:
            committer.settle()
        image = item.decoded()
        masks, failure, seconds = None, image.failure, None
        if image.prepared is not None:
            begun, encoded = time.perf_counter(), self._generator.stages.seconds["encode"]
            with (
                log_fields(shard=item.work.planned.id, image_id=image.image_id),
                self._in_flight.at(item.work.planned.id, item.index, item.alone),
            ):
                masks, failure = self._masker.masks_of(image)
            seconds = time.perf_counter() - begun
            encoding = self._generator.stages.seconds["encode"] - encoded
            current.timings["encode"] += encoding
            current.timings["generate"] += seconds - encoding
        row = image_row(image, item.work.planned.id, masks, failure, seconds)
        columns = mask_columns(masks) if masks is not None else None
        rejects = reject_columns(masks) if masks is not None else None
        added = committer.add(item, current, row, columns, rejects)
        current.totals = current.totals + _totals(masks, failure)
        current.next_offset = item.next_offset
        current.timings["fetch"] += item.fetch_s
        current.timings["decode"] += image.seconds
        if item.alone:
            added.result()
            self._in_flight.through(item.work.planned.id, item.index)
        return ImageDone(
            item.work.planned.id,
            image.image_id,
            row["n_masks"],
            row["error_type"],
            row["error_message"],
            seconds or 0.0,
        )


def _totals(masks: ImageMasks | None, failure: Failure | None) -> Totals:
    if failure is not None:
        return Totals(images=1, failed=1, errors={failure.type: 1})
    assert masks is not None
    return Totals(images=1, masks=len(masks), **asdict(masks.filtered))
