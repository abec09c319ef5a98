"""Reader thread: fetches the images of shards ahead of the model, in order, within a budget of bytes in flight."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from queue import Full, Queue

from data_engine.config import JobConfig
from data_engine.errors import DataEngineError, StorageError
from data_engine.images.decode import peek_size
from data_engine.images.shard import EncodedImage, Shard, ShardDamaged
from data_engine.images.sources import check_unchanged, read_shard
from data_engine.images.web_reach import WebReach
from data_engine.pipeline.image_decoders import ImageDecoders
from data_engine.pipeline.in_flight import InFlight, reading
from data_engine.pipeline.lost_folder import lost_archive, lost_folder
from data_engine.pipeline.shard_work import POLL_S, FetchedImage, Given, Item, ShardEnd, ShardWork
from data_engine.pipeline.stall import Stall
from data_engine.retry import passes
from data_engine.storage import redact, scheme_of

_GRACE_S = 2.0
_READ_AGAIN = "what lies before it is kept; to have it read again, remove the *.in-flight notes of this job"


class ShardReader:
    """The reader thread of one run, and the queue that it fills."""

    def __init__(
        self,
        work: Iterable[Given],
        config: JobConfig,
        decoders: ImageDecoders,
        stall: Stall,
        in_flight: InFlight,
        web: WebReach,
    ) -> None:
        """work: asked for the next shard in the reader thread. stall, in_flight: told what is being read."""
        self._settings = config.input
        self._in_flight = in_flight
        self._web = web
        self._decoders = decoders
        self._stall = stall
        self._closed = threading.Event()
        self._budget = _ByteBudget(config.run.image_memory, self._closed)
        self._last: threading.Event | None = None  # set when the image that was read last is through
        self._thread = threading.Thread(target=self._read, args=(work,), name="read", daemon=True)
        self.items: Queue[Item] = Queue(maxsize=config.run.prefetch_images)

    def start(self) -> None:
        """Begins to fill `items`."""
        self._thread.start()

    def through(self, item: FetchedImage) -> None:
        """To be called once an image is done with: others may take its place in memory."""
        self._budget.release(item.bytes)
        item.done.set()

    def close(self) -> None:
        """Ends the thread, unless it hangs, and the decoders."""
        self._closed.set()
        self._thread.join(_GRACE_S)  # it may hang in a read of a store that has stopped sending
        self._decoders.close()

    def _read(self, work: Iterable[Given]) -> None:
        try:
            for shard in work:
                if not isinstance(shard, ShardWork):
                    self._deliver(shard)
                    continue
                for item in self._read_one(shard):
                    self._deliver(item)
                if self._closed.is_set():
                    return
            self._deliver(None)
        except BaseException as error:  # whatever it is belongs to the caller of `run`
            self._deliver(error)

    def _deliver(self, item: Item) -> None:
        while not self._closed.is_set():
            with suppress(Full):
                self.items.put(item, timeout=POLL_S)
                return

    def _read_one(self, work: ShardWork) -> Iterator[FetchedImage | ShardEnd]:
        shard, start, take = work.planned.shard, work.start, work.planned.take
        where = redact(shard.uri)
        try:
            check_unchanged(shard)
            images = read_shard(
                shard,
                self._settings,
                start=start.image,
                offset=start.offset,
                seen_ids=work.seen_ids,
                web=self._web,
            )
            index, begun = start.image, time.perf_counter()
            while take is None or index < take:
                if (reason := work.left_out.get(reading(index))) is not None:
                    images.close()
                    yield ShardEnd(work, failure=f"{where}: image {index:,} cannot be read: {reason}; {_READ_AGAIN}")
                    return
                with self._stall.of(f"reading image {index:,} of {where}"), self._noted(work, index):
                    image = next(images, None)
                if image is None or self._closed.is_set() or work.left.is_set():
                    break
                if (lost := lost_folder(shard, image)) is not None:
                    images.close()
                    yield ShardEnd(work, failure=lost, away=True)
                    return
                fetched = time.perf_counter() - begun
                size = _decoded_bytes(image)
                alone = image.index in work.alone
                if alone and self._last is not None:
                    self._wait_until(self._last)
                self._budget.acquire(size)
                decoded = self._decoders.begin(work, image)
                item = FetchedImage(work, image.index, image.image_id, image.next_offset, decoded, size, fetched)
                self._last = item.done
                yield item
                if work.careful or alone:  # nothing of the next one is touched before this one is through and reported
                    self._wait_until(item.done)
                index, begun = image.index + 1, time.perf_counter()
            images.close()
            yield ShardEnd(work)
        except ShardDamaged as damage:
            if damage.reason == "changed" and (lost := lost_archive(shard)) is not None:
                yield ShardEnd(work, failure=lost, away=True)
            elif damage.reason == "changed":
                yield ShardEnd(work, failure=str(damage), changed=True)
            else:
                yield ShardEnd(work, damage=damage)
        except (DataEngineError, FileNotFoundError) as error:
            away = isinstance(error, StorageError) and passes(error.__cause__) and not _on_the_web(shard)
            yield ShardEnd(work, failure=str(error), away=away)

    @contextmanager
    def _noted(self, work: ShardWork, index: int) -> Iterator[None]:
        """Whoever unpacks a tar or a Parquet file may end the process, as decoders may."""
        shard, position = work.planned.shard, reading(index)
        if shard.kind == "files":
            yield
            return
        alone = position in work.alone
        if alone and self._last is not None:
            self._wait_until(self._last)
        with self._in_flight.at(shard.id, position, alone):
            yield
        if alone:
            self._in_flight.through(shard.id, position)

    def _wait_until(self, done: threading.Event) -> None:
        while not done.wait(POLL_S) and not self._closed.is_set():
            pass


class _ByteBudget:
    """Bounds the bytes of decoded images in flight. An image larger than all of it passes when it is alone."""

    def __init__(self, limit: int, closed: threading.Event) -> None:
        self._limit, self._held, self._closed = limit, 0, closed
        self._changed = threading.Condition()

    def acquire(self, size: int) -> None:
        with self._changed:
            while self._held and self._held + size > self._limit and not self._closed.is_set():
                self._changed.wait(POLL_S)
            self._held += size

    def release(self, size: int) -> None:
        with self._changed:
            self._held -= size
            self._changed.notify()


def _decoded_bytes(image: EncodedImage) -> int:
    """What an image will take once decoded: pixels, and as much again for the views cut from it."""
    size = peek_size(image.data) if image.data else None
    return 6 * size[0] * size[1] if size else 0


def _on_the_web(shard: Shard) -> bool:
    """One web server that is down says nothing of others, and may be gone for good. A signed link leads to a store, and
    of files it is known that the others do not answer either."""
    return scheme_of(shard.uri) in ("http", "https") and shard.link is None and shard.kind != "files"
