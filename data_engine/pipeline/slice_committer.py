"""Writer thread: compresses the rows of a slice, writes its files and commits it."""

from __future__ import annotations

import time
import uuid
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from data_engine import __version__
from data_engine.dataset.commits import CommitRecord, Part, Totals
from data_engine.dataset.writer import FinishedFile, SliceWriter
from data_engine.images.shard import ShardDamaged
from data_engine.pipeline.commit import delete, put, put_if_absent
from data_engine.pipeline.events import Event, SliceCommitted, SliceLost
from data_engine.pipeline.in_flight import InFlight
from data_engine.pipeline.logs import carry_fields, log_fields
from data_engine.pipeline.plan import now
from data_engine.pipeline.shard_work import FetchedImage, ShardWork
from data_engine.storage import join

_Committed = SliceCommitted | SliceLost | None  # None: of a shard that was left


@dataclass(slots=True)
class OpenSlice:
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


@dataclass(frozen=True, slots=True)
class Destination:
    """Where slices are committed, and as whose."""

    root: str
    owner: str
    metadata: dict[str, Any]  # the plan's
    single_writer: bool


class SliceCommitter:
    """The writer thread of one run, and the slices that are on their way through it, in order.

    What is public here is for the calling thread alone.
    """

    def __init__(self, destination: Destination, in_flight: InFlight) -> None:
        self._destination = destination
        self._in_flight = in_flight
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="write")
        self._commits: deque[Future[_Committed]] = deque()

    def open(self, work: ShardWork, index: int, first_image: int) -> OpenSlice:
        """The shard's slice number `index`, which begins with its image number `first_image`."""
        shard = work.planned.shard
        source = {"shard": shard.id, "uri": shard.uri, "etag": shard.etag, "slice": index}
        return OpenSlice(work, index, first_image, SliceWriter({**self._destination.metadata, "source": source}))

    def add(
        self, item: FetchedImage, to: OpenSlice, row: dict[str, Any], *columns: dict[str, Any] | None
    ) -> Future[None]:
        """An image's row and the columns of its masks and rejects; done once they are in the slice."""
        added = self._thread.submit(self._add, item, to.writer, row, *columns)
        to.added.append(added)
        return added

    def settle(self) -> None:
        """Waits until all that was given to the thread so far is through."""
        self._thread.submit(_nothing).result()

    def commit(self, current: OpenSlice, *, final: bool, damage: ShardDamaged | None = None) -> None:
        """Begins to; `finished` tells what became of it."""
        with log_fields(shard=current.work.planned.id):
            committing = carry_fields(partial(self._commit, current, final=final, damage=damage))
            self._commits.append(self._thread.submit(committing))

    def turn_over(self, current: OpenSlice) -> OpenSlice:
        """Commits it, and opens the one that follows it."""
        following = self.open(current.work, current.index + 1, current.first_image + current.totals.images)
        self.commit(current, final=False)
        return following

    def finished(self, most_waiting: int) -> Iterator[Event]:
        """Reports commits that are through, waiting while more than `most_waiting` are not.

        Raises StorageError for one that could not be written.
        """
        while self._commits and (len(self._commits) > most_waiting or self._commits[0].done()):
            outcome = self._commits.popleft().result()
            if outcome is not None:
                yield outcome

    def close(self, wait: bool) -> None:
        """Drops what is not begun. wait: for what is."""
        self._thread.shutdown(wait=wait, cancel_futures=True)

    def _add(self, item: FetchedImage, to: SliceWriter, row: dict[str, Any], *columns: dict[str, Any] | None) -> None:
        with self._in_flight.at(item.work.planned.id, item.index, item.alone):
            to.add(row, *columns)

    def _commit(self, current: OpenSlice, *, final: bool, damage: ShardDamaged | None) -> _Committed:
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

    def _write(self, current: OpenSlice, final: bool, damage: ShardDamaged | None) -> _Committed:
        """The files, then the record that makes them count."""
        begun = time.perf_counter()
        root = self._destination.root
        attempt = uuid.uuid4().hex[:8]
        name = f"{current.work.planned.id}-{current.index:05d}-{attempt}.parquet"
        for added in current.added:
            added.result()  # a row that could not be added must not be missed
        images, masks = current.writer.finish()
        rejects = current.writer.finish_rejects()
        put(join(root, "images", name), images.data)
        put(join(root, "masks", name), masks.data)
        if rejects:
            put(join(root, "rejects", name), rejects.data)
        timings = {**current.timings, "write": time.perf_counter() - begun}
        record = CommitRecord(
            fingerprint=self._destination.metadata["fingerprint"],
            shard=current.work.planned.id,
            slice=current.index,
            first_image=current.first_image,
            final=final,
            images=_part("images", name, images),
            masks=_part("masks", name, masks),
            rejects=_part("rejects", name, rejects) if rejects else None,
            totals=current.totals,
            owner=self._destination.owner,
            attempt=attempt,
            next_offset=current.next_offset,
            damage=_damage(damage),
            timings={stage: round(seconds, 4) for stage, seconds in timings.items()},
            code_version=__version__,
            committed_at=now(),
        )
        if put_if_absent(join(root, record.file), record.to_json(), self._destination.single_writer):
            return SliceCommitted(record)
        current.work.left.set()
        for part in record.parts:
            delete(join(root, part.file))
        return SliceLost(record.shard, record.slice)


def _nothing() -> None:
    pass


def _part(folder: str, name: str, file: FinishedFile) -> Part:
    return Part(file=f"{folder}/{name}", size=len(file.data), sha256=file.sha256, rows=file.rows)


def _damage(damage: ShardDamaged | None) -> dict[str, object] | None:
    if damage is None:
        return None
    return {"reason": damage.reason, "offset": damage.offset, "last_key": damage.last_key, "message": str(damage)}
