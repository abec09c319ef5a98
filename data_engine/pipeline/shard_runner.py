"""Shards in, commits out: fetch, decode, model and write overlap, and nothing is visible before it is whole.

    reader thread        fetches bytes, in the shard's order
    decode threads       bytes -> RGB -> views for the model
    the calling thread   runs the model, so that its events and signals arrive where they are expected
    writer thread        compresses, writes, commits

The stream runs across shards, so the next shard is fetched while the model is busy with this one.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from queue import Empty, Full, Queue
from typing import Any

from data_engine import __version__
from data_engine.config import JobConfig
from data_engine.dataset.commits import CommitRecord, Part, Totals
from data_engine.dataset.rejects import keeps_rejects
from data_engine.dataset.writer import FinishedFile, SliceWriter
from data_engine.errors import DataEngineError, DeviceLost, ModelFailure, StorageError
from data_engine.images.decode import peek_size
from data_engine.images.fingerprint import sha256
from data_engine.images.shard import EncodedImage, Shard, ShardDamaged
from data_engine.images.sources import check_unchanged, read_shard
from data_engine.masks.generator import Interrupted, MaskGenerator
from data_engine.masks.image_masks import ImageMasks
from data_engine.masks.prompting import NonFiniteOutput
from data_engine.pipeline.commit import delete, new_owner, put, put_if_absent
from data_engine.pipeline.events import (
    BatchShrunk,
    Event,
    ImageDone,
    ImageStarted,
    ShardDone,
    ShardFailed,
    SliceCommitted,
    SliceLost,
)
from data_engine.pipeline.in_flight import InFlight
from data_engine.pipeline.logs import carry_fields, log_fields
from data_engine.pipeline.lost_folder import lost_archive, lost_folder
from data_engine.pipeline.plan import JobPlan, PlannedShard, Remaining, now
from data_engine.pipeline.rows import DecodedImage, Failure, decode_image, image_row, mask_columns, reject_columns
from data_engine.pipeline.stall import Stall
from data_engine.retry import passes
from data_engine.sam.device_errors import is_out_of_memory, loses_device
from data_engine.storage import join, redact, scheme_of

log = logging.getLogger(__name__)

_SLICES_IN_WRITING = 2
_POLL_S = 0.1
_READER_GRACE_S = 2.0
_TRACEBACKS = 10  # that are logged


@dataclass(frozen=True, slots=True)
class ShardWork:
    """A shard and the point to go on from."""

    planned: PlannedShard
    start: Remaining
    seen_ids: Collection[str] = ()  # of the images before that point
    careful: bool = False  # nothing is decoded before it is its turn, so that ImageStarted names what kills a process
    quarantined: Mapping[str, str] = field(default_factory=dict)  # image id -> why it must not be touched again
    alone: Collection[int] = ()  # numbers of images that are worked on with no other in flight
    left_out: Mapping[int, str] = field(default_factory=dict)  # as `quarantined`, by the image's number
    left: threading.Event = field(default_factory=threading.Event)  # set when the rest is left to another writer


@dataclass(frozen=True, slots=True)
class _Image:
    work: ShardWork
    index: int
    image_id: str
    next_offset: int | None
    decoded: Callable[[], DecodedImage]
    bytes: int
    fetch_s: float
    done: threading.Event = field(default_factory=threading.Event)


@dataclass(frozen=True, slots=True)
class _ShardEnd:
    work: ShardWork
    damage: ShardDamaged | None = None
    failure: str | None = None
    changed: bool = False  # it is not the shard that was planned: what was read of it cannot be trusted
    away: bool = False  # its store does not answer now


_Committed = SliceCommitted | SliceLost | None  # None: of a shard that was left
_Item = _Image | _ShardEnd | ShardDone | ShardFailed | BaseException | None  # None: no more work


@dataclass(slots=True)
class _OpenSlice:
    """The slice being filled."""

    work: ShardWork
    index: int
    first_image: int
    writer: SliceWriter
    added: list[Future[None]] = field(default_factory=list)
    totals: Totals = field(default_factory=Totals)
    next_offset: int | None = None
    opened: float = field(default_factory=time.monotonic)
    timings: dict[str, float] = field(
        default_factory=lambda: dict.fromkeys(("fetch", "decode", "encode", "generate", "write"), 0.0)
    )


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
        self._root = root
        self._plan = plan
        self._config = config
        self._generator = generator
        self._stopping = stopping
        self._floors = config.reject_floors
        self._owner = new_owner()
        self._metadata = metadata or plan.metadata()
        self._in_flight = in_flight or InFlight()
        self._reading = Stall()
        self._items: Queue[_Item] = Queue()
        self._model_failures = 0  # since it last worked
        self._tracebacks = 0
        self._points_at_once = generator.points_at_once

    def waiting(self) -> int:
        """Images fetched ahead of the model."""
        return self._items.qsize()

    def run(self, work: Iterable[ShardWork | ShardDone | ShardFailed]) -> Generator[Event, None, None]:
        """Works through the shards, reporting as it goes; ends early, without error, once `stopping`.

        What stands among the shards for one that needs no work, or cannot be begun, is reported in its turn.
        Raises StorageError when the output cannot be written, ModelFailure when the model fails on everything, and
        DeviceLost, once the images before it are committed, when this process cannot use its device any more.
        A shard that cannot be read is a ShardFailed event, an image that cannot be masked an ImageDone with an error.
        """
        settings = self._config.run
        items: Queue[_Item] = Queue(maxsize=settings.prefetch_images)
        self._items = items
        closed = threading.Event()
        decoders = ThreadPoolExecutor(settings.decode_threads, thread_name_prefix="decode")
        writer = ThreadPoolExecutor(1, thread_name_prefix="write")
        budget = _ByteBudget(settings.image_memory, closed)
        reader = threading.Thread(
            target=self._read, args=(work, items, decoders, budget, closed), name="read", daemon=True
        )
        reader.start()
        at_once = False
        try:
            yield from self._consume(items, writer, budget)
        except KeyboardInterrupt:
            at_once = True  # though the store may be away for minutes: what is being written will be whole or not there
            raise
        finally:
            closed.set()
            reader.join(_READER_GRACE_S)  # it may hang in a read of a store that has stopped sending
            decoders.shutdown(wait=False, cancel_futures=True)
            writer.shutdown(wait=not at_once, cancel_futures=True)

    # ---- reader thread ----------------------------------------------------------------------------------------------

    def _read(
        self,
        work: Iterable[ShardWork | ShardDone | ShardFailed],
        items: Queue[_Item],
        decoders: ThreadPoolExecutor,
        budget: _ByteBudget,
        closed: threading.Event,
    ) -> None:
        def deliver(item: _Item) -> None:
            while not closed.is_set():
                with suppress(Full):
                    items.put(item, timeout=_POLL_S)
                    return

        last: deque[threading.Event] = deque(maxlen=1)  # set when the image that was read last is through
        try:
            for shard in work:
                if not isinstance(shard, ShardWork):
                    deliver(shard)
                    continue
                for item in self._read_one(shard, decoders, budget, closed, last):
                    deliver(item)
                if closed.is_set():
                    return
            deliver(None)
        except BaseException as error:  # whatever it is belongs to the caller of `run`
            deliver(error)

    def _read_one(
        self,
        work: ShardWork,
        decoders: ThreadPoolExecutor,
        budget: _ByteBudget,
        closed: threading.Event,
        last: deque[threading.Event],
    ) -> Iterator[_Image | _ShardEnd]:
        shard, start, take = work.planned.shard, work.start, work.planned.take
        where = redact(shard.uri)
        try:
            check_unchanged(shard)
            images = read_shard(
                shard, self._config.input, start=start.image, offset=start.offset, seen_ids=work.seen_ids
            )
            index, begun = start.image, time.perf_counter()
            while take is None or index < take:
                with self._reading.of(f"reading image {index:,} of {where}"):
                    image = next(images, None)
                if image is None or closed.is_set() or work.left.is_set():
                    break
                if (lost := lost_folder(shard, image)) is not None:
                    images.close()
                    yield _ShardEnd(work, failure=lost, away=True)
                    return
                fetched = time.perf_counter() - begun
                size = _decoded_bytes(image)
                alone = image.index in work.alone
                if alone and last:
                    _wait_until(last[0], closed)
                budget.acquire(size)
                decoded = self._decoded(work, image, decoders)
                item = _Image(work, image.index, image.image_id, image.next_offset, decoded, size, fetched)
                last.append(item.done)
                yield item
                if work.careful or alone:  # nothing of the next one is touched before this one is through and reported
                    _wait_until(item.done, closed)
                index, begun = image.index + 1, time.perf_counter()
            images.close()
            yield _ShardEnd(work)
        except ShardDamaged as damage:
            if damage.reason == "changed" and (lost := lost_archive(shard)) is not None:
                yield _ShardEnd(work, failure=lost, away=True)
            elif damage.reason == "changed":
                yield _ShardEnd(work, failure=str(damage), changed=True)
            else:
                yield _ShardEnd(work, damage=damage)
        except (DataEngineError, FileNotFoundError) as error:
            away = isinstance(error, StorageError) and passes(error.__cause__) and not _on_the_web(shard)
            yield _ShardEnd(work, failure=str(error), away=away)

    def _decoded(
        self, work: ShardWork, image: EncodedImage, decoders: ThreadPoolExecutor
    ) -> Callable[[], DecodedImage]:
        reason = work.quarantined.get(image.image_id) or work.left_out.get(image.index)
        if reason is not None:
            digest = sha256(image.data) if image.data is not None else None
            left_out = DecodedImage(image.image_id, image.uri, digest, failure=Failure("worker_died", reason))
            return lambda: left_out
        if work.careful or image.index in work.alone:
            return partial(self._decode, work, image)
        return partial(self._decoded_in_time, image.image_id, decoders.submit(self._decode, work, image))

    def _decoded_in_time(self, image_id: str, decoding: Future[DecodedImage]) -> DecodedImage:
        """Raises Interrupted where it is not decoded before the job is to stop: native code may hang in it."""
        stall = Stall()
        with stall.of(f"decoding {image_id}"):
            while not wait((decoding,), _POLL_S).done:
                if self._stopping():
                    raise Interrupted
                stall.mention()
        return decoding.result()

    def _decode(self, work: ShardWork, image: EncodedImage) -> DecodedImage:
        begun = time.perf_counter()
        with self._in_flight.at(work.planned.id, image.index, image.index in work.alone):
            decoded = decode_image(image, self._generator, self._config.input)
        return replace(decoded, seconds=time.perf_counter() - begun)

    # ---- calling thread ---------------------------------------------------------------------------------------------

    def _consume(
        self,
        items: Queue[_Item],
        writer: ThreadPoolExecutor,
        budget: _ByteBudget,
    ) -> Iterator[Event]:
        commits: deque[Future[_Committed]] = deque()
        current: _OpenSlice | None = None
        lost: DeviceLost | None = None
        while True:
            yield from self._finished(commits, most_waiting=_SLICES_IN_WRITING)
            try:
                item = items.get(timeout=_POLL_S)
            except Empty:
                if self._stopping():
                    break
                if current is not None and self._is_old(current):  # what is masked does not wait for what is not read
                    following = self._after(current)
                    commits.append(self._close(current, writer, final=False))
                    current = following
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
                if isinstance(item, _Image):
                    budget.release(item.bytes)
                    item.done.set()
                current = None
                continue
            if current is None:
                current = self._open(item.work, item.work.start.slice, item.work.start.image)
            elif isinstance(item, _Image) and self._is_full(current):
                following = self._after(current)
                commits.append(self._close(current, writer, final=False))
                current = following
            if isinstance(item, _Image):
                yield ImageStarted(item.work.planned.id, item.image_id)
                try:
                    yield self._mask(item, current, writer)
                except Interrupted:
                    break
                except DeviceLost as error:
                    lost = error
                    break
                finally:
                    budget.release(item.bytes)
                    item.done.set()
                if self._generator.points_at_once < self._points_at_once:
                    self._points_at_once = self._generator.points_at_once
                    yield BatchShrunk(self._points_at_once)
                continue
            if item.failure is None:
                commits.append(self._close(current, writer, final=True, damage=item.damage))
            else:
                if current.totals.images and not item.changed:
                    commits.append(self._close(current, writer, final=False))
                shard = item.work.planned.shard
                yield ShardFailed(shard.id, shard.uri, item.failure, permanent=item.changed, of_store=item.away)
            current = None
        if current is not None and current.totals.images:  # stopped or device lost: what is masked is kept
            commits.append(self._close(current, writer, final=False))
        yield from self._finished(commits, most_waiting=0)
        if lost is not None:
            raise lost

    def _is_full(self, current: _OpenSlice) -> bool:
        return current.totals.images == self._plan.images_per_commit or self._is_old(current)

    def _is_old(self, current: _OpenSlice) -> bool:
        return current.totals.images > 0 and time.monotonic() - current.opened > self._config.run.commit_seconds

    def _finished(self, commits: deque[Future[_Committed]], most_waiting: int) -> Iterator[Event]:
        """Reports commits that are through, waiting while more than `most_waiting` are not."""
        while commits and (len(commits) > most_waiting or commits[0].done()):
            outcome = commits.popleft().result()
            if outcome is not None:
                yield outcome

    def _open(self, work: ShardWork, index: int, first_image: int) -> _OpenSlice:
        shard = work.planned.shard
        source = {"shard": shard.id, "uri": shard.uri, "etag": shard.etag, "slice": index}
        return _OpenSlice(work, index, first_image, SliceWriter({**self._metadata, "source": source}))

    def _after(self, current: _OpenSlice) -> _OpenSlice:
        return self._open(current.work, current.index + 1, current.first_image + current.totals.images)

    def _mask(self, item: _Image, current: _OpenSlice, writer: ThreadPoolExecutor) -> ImageDone:
        alone = item.index in item.work.alone
        if alone:
            writer.submit(_nothing).result()  # what is before it there is through
        image = item.decoded()
        masks, failure, seconds = None, image.failure, None
        if image.prepared is not None:
            begun, encoded = time.perf_counter(), self._generator.stages.seconds["encode"]
            with (
                log_fields(shard=item.work.planned.id, image_id=image.image_id),
                self._in_flight.at(item.work.planned.id, item.index, alone),
            ):
                masks, failure = self._generate(image)
            seconds = time.perf_counter() - begun
            encoding = self._generator.stages.seconds["encode"] - encoded
            current.timings["encode"] += encoding
            current.timings["generate"] += seconds - encoding
        row = image_row(image, item.work.planned.id, masks, failure, seconds)
        columns = mask_columns(masks) if masks is not None else None
        rejects = reject_columns(masks) if masks is not None else None
        added = writer.submit(self._add, item, current.writer, row, columns, rejects)
        current.added.append(added)
        current.totals = current.totals + _totals(masks, failure)
        current.next_offset = item.next_offset
        current.timings["fetch"] += item.fetch_s
        current.timings["decode"] += image.seconds
        if alone:
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

    def _generate(self, image: DecodedImage) -> tuple[ImageMasks | None, Failure | None]:
        assert image.prepared is not None
        try:
            floors = self._floors if keeps_rejects(image.image_id, self._config.output.keep_rejects) else None
            masks = self._generator.run(image.prepared, self._stopping, floors)
        except Interrupted:
            raise
        except NonFiniteOutput as error:
            failure = Failure("non_finite", str(error))
        except Exception as error:  # one image never fails a shard
            device = self._generator.segmenter.device
            if loses_device(error, device):  # every further image would fail for no fault of its own
                cause = (str(error).splitlines() or [""])[0]
                raise DeviceLost(
                    f"{device} was lost at image {image.image_id} ({type(error).__name__}: {cause}); what was masked "
                    "before is committed. Run the same command again; if it comes back, the GPU needs a reset"
                ) from error
            if is_out_of_memory(error):
                failure = Failure("out_of_memory", f"one prompt at a time does not fit: {error}")
            else:
                failure = Failure("internal_error", f"{type(error).__name__}: {error}")
                self._log_failure(image.image_id)
        else:
            self._model_failures = 0
            return masks, None
        self._model_failures += 1
        if self._model_failures >= self._config.run.give_up_after:
            # Photographs that a model cannot mask are rare and far between: this is the set-up, or memory of the device
            # that others have taken since.
            raise ModelFailure(
                f"the model failed on {self._model_failures} images in a row, last on {image.image_id} "
                f"({failure.type}: {failure.message}): the set-up or the device is at fault, so the job stops here. "
                "If it is the images, raise run.give_up_after"
            )
        return None, failure

    def _log_failure(self, image_id: str) -> None:
        """Called while the error is handled. One image in a thousand would be a flood; every row has its message."""
        self._tracebacks += 1
        if self._tracebacks <= _TRACEBACKS:
            rest = "; further ones are told by their rows alone" if self._tracebacks == _TRACEBACKS else ""
            log.warning("%s: the model failed%s", image_id, rest, exc_info=True)

    # ---- writer thread ----------------------------------------------------------------------------------------------

    def _add(self, item: _Image, to: SliceWriter, row: dict[str, Any], *columns: dict[str, Any] | None) -> None:
        with self._in_flight.at(item.work.planned.id, item.index, item.index in item.work.alone):
            to.add(row, *columns)

    def _close(
        self, current: _OpenSlice, writer: ThreadPoolExecutor, *, final: bool, damage: ShardDamaged | None = None
    ) -> Future[_Committed]:
        with log_fields(shard=current.work.planned.id):
            return writer.submit(carry_fields(partial(self._commit, current, final=final, damage=damage)))

    def _commit(self, current: _OpenSlice, *, final: bool, damage: ShardDamaged | None) -> _Committed:
        """Writes a slice, unless the one before it was not written.

        Once another writer was faster with a slice, or it failed, none that would follow it may be written: the one
        that will be there may end elsewhere.
        """
        if current.work.left.is_set():
            return None
        try:
            return self._write(current, final, damage)
        except BaseException:
            current.work.left.set()
            raise

    def _write(self, current: _OpenSlice, final: bool, damage: ShardDamaged | None) -> _Committed:
        """The files, then the record that makes them count."""
        begun = time.perf_counter()
        attempt = uuid.uuid4().hex[:8]
        name = f"{current.work.planned.id}-{current.index:05d}-{attempt}.parquet"
        for added in current.added:
            added.result()  # a row that could not be added must not be missed
        images, masks = current.writer.finish()
        rejects = current.writer.finish_rejects()
        put(join(self._root, "images", name), images.data)
        put(join(self._root, "masks", name), masks.data)
        if rejects:
            put(join(self._root, "rejects", name), rejects.data)
        timings = {**current.timings, "write": time.perf_counter() - begun}
        record = CommitRecord(
            fingerprint=self._metadata["fingerprint"],
            shard=current.work.planned.id,
            slice=current.index,
            first_image=current.first_image,
            final=final,
            images=_part("images", name, images),
            masks=_part("masks", name, masks),
            rejects=_part("rejects", name, rejects) if rejects else None,
            totals=current.totals,
            owner=self._owner,
            attempt=attempt,
            next_offset=current.next_offset,
            damage=_damage(damage),
            timings={stage: round(seconds, 4) for stage, seconds in timings.items()},
            code_version=__version__,
            committed_at=now(),
        )
        if put_if_absent(join(self._root, record.file), record.to_json(), self._config.run.single_writer):
            return SliceCommitted(record)
        current.work.left.set()
        for part in record.parts:
            delete(join(self._root, part.file))
        return SliceLost(record.shard, record.slice)


def _on_the_web(shard: Shard) -> bool:
    """One web server that is down says nothing of others, and may be gone for good. A signed link leads to a store."""
    return scheme_of(shard.uri) in ("http", "https") and shard.link is None


def _wait_until(done: threading.Event, closed: threading.Event) -> None:
    while not done.wait(_POLL_S) and not closed.is_set():
        pass


def _nothing() -> None:
    pass


class _ByteBudget:
    """Bounds the bytes of decoded images in flight. An image larger than all of it passes when it is alone."""

    def __init__(self, limit: int, closed: threading.Event) -> None:
        self._limit, self._held, self._closed = limit, 0, closed
        self._changed = threading.Condition()

    def acquire(self, size: int) -> None:
        with self._changed:
            while self._held and self._held + size > self._limit and not self._closed.is_set():
                self._changed.wait(_POLL_S)
            self._held += size

    def release(self, size: int) -> None:
        with self._changed:
            self._held -= size
            self._changed.notify()


def _decoded_bytes(image: EncodedImage) -> int:
    """What an image will take once decoded: pixels, and as much again for the views cut from it."""
    size = peek_size(image.data) if image.data else None
    return 6 * size[0] * size[1] if size else 0


def _totals(masks: ImageMasks | None, failure: Failure | None) -> Totals:
    if failure is not None:
        return Totals(images=1, failed=1, errors={failure.type: 1})
    assert masks is not None
    return Totals(images=1, masks=len(masks), **asdict(masks.filtered))


def _part(folder: str, name: str, file: FinishedFile) -> Part:
    return Part(file=f"{folder}/{name}", size=len(file.data), sha256=file.sha256, rows=file.rows)


def _damage(damage: ShardDamaged | None) -> dict[str, object] | None:
    if damage is None:
        return None
    return {"reason": damage.reason, "offset": damage.offset, "last_key": damage.last_key, "message": str(damage)}
