"""One worker of a cluster: a process with a model, on one GPU or some CPU cores, that runs the shards it is given.

The driver talks to it through three threads of the actor: `run` streams what happens, `assign` and the like arrive
beside it. Image bytes come from the store straight to here; what goes back are ids and counts.
"""

from __future__ import annotations

import errno
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import ray
import torch

from data_engine import __version__
from data_engine.config import JobConfig, resolve
from data_engine.dataset.commits import PLAN_FILE, CommitRecord, commit_file
from data_engine.dataset.reader import MaskDataset
from data_engine.errors import DataEngineError, DeviceLost, ModelFailure, StorageError
from data_engine.images.shard import Shard
from data_engine.masks.generator import MaskGenerator
from data_engine.pipeline.events import (
    Event,
    ImageDone,
    ImageStarted,
    ShardDone,
    ShardFailed,
    SliceCommitted,
    SliceLost,
)
from data_engine.pipeline.logs import configure_logging, log_fields
from data_engine.pipeline.plan import JobPlan, PlannedShard, Remaining, after
from data_engine.pipeline.ray_metrics import WorkerMetrics
from data_engine.pipeline.shard_runner import ShardRunner
from data_engine.pipeline.shard_work import ShardWork
from data_engine.retry import passes
from data_engine.sam.segmenter import load_segmenter
from data_engine.storage import is_local, join, local_path, read_bytes

log = logging.getLogger(__name__)

_POLL_S = 0.1
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True, slots=True)
class WorkerJob:
    """What every worker of a job is told once. The plan goes without its shards: they come one by one."""

    name: str
    run_id: str
    output: str
    plan: JobPlan
    metadata: dict[str, Any]
    config: dict[str, Any]
    code_version: str
    torch_version: str
    wants_gpu: bool
    threads: int
    report_every_s: float
    log_level: int
    log_json: bool


@dataclass(frozen=True, slots=True)
class Assignment:
    """A shard to run, from where it stood when it was given out."""

    planned: PlannedShard
    start: Remaining
    careful: bool
    quarantined: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class WorkerFacts:
    """What a worker that is ready to work says of itself."""

    node: str
    device: str
    pid: int


class Unfit(DataEngineError):
    """This node cannot do the job, and why."""


@dataclass(slots=True)
class _Held:
    """A shard that the driver counts on."""

    assignment: Assignment
    work: ShardWork | None = None  # once it has been begun


class ClusterWorker:
    """Made into a Ray actor by `ray_cluster.py`."""

    def __init__(self, job: WorkerJob) -> None:
        self._job = job
        self._queue: deque[Assignment] = deque()
        self._held: dict[str, _Held] = {}
        self._lock = threading.Condition()  # of the two above
        self._stop = threading.Event()
        self._runner: ShardRunner | None = None
        self._metrics: WorkerMetrics | None = None
        configure_logging(job.log_level, job.log_json)

    # ---- before the work --------------------------------------------------------------------------------------------

    def hello(self) -> str:
        """The id of the node that this worker was given a place on."""
        return str(ray.get_runtime_context().get_node_id())

    def prepare(self) -> WorkerFacts:
        """Checks this node and loads the model. Raises Unfit."""
        job = self._job
        with log_fields(run=job.run_id, worker=job.name):
            if not job.wants_gpu:
                torch.set_num_threads(job.threads)
            config = resolve(job.config, "the job's settings")
            device = self._check_node(config)
            try:
                segmenter = load_segmenter(
                    config.model.name,
                    device,
                    config.model.precision,
                    expected_sha256=job.plan.model_sha256,
                    compiled=config.model.compiled,
                )
            except DataEngineError as error:
                raise Unfit(str(error)) from None
            generator = MaskGenerator(segmenter, config.masks, memory_budget=config.run.mask_memory)
            self._runner = ShardRunner(job.output, job.plan, config, generator, self._stop.is_set, job.metadata)
            self._metrics = WorkerMetrics(self._runner.waiting)
            return WorkerFacts(self.hello(), str(segmenter.device), os.getpid())

    def _check_node(self, config: JobConfig) -> str:
        if __version__ != self._job.code_version:
            raise Unfit(
                f"data-engine {__version__} is installed on the node, the driver has {self._job.code_version}: "
                "install the same version"
            )
        here, there = torch.__version__.split("+")[0], self._job.torch_version.split("+")[0]
        if here != there:
            raise Unfit(f"torch {here} is installed on the node, the driver has {there}: install the same version")
        output = self._job.output
        if is_local(output) and not local_path(join(output, PLAN_FILE)).exists():  # it would fill a folder of its own
            raise Unfit(
                f"{output} on the node is not the driver's folder (it has no {PLAN_FILE}): mount the same one on all "
                "nodes, or use a store for the output"
            )
        if not self._job.wants_gpu:
            return "cpu" if config.run.device == "auto" else config.run.device
        if not torch.cuda.is_available():
            raise Unfit("no GPU is visible to torch on the node: check the driver (nvidia-smi) and the torch build")
        return "cuda"

    # ---- while it works: called beside `run` ------------------------------------------------------------------------

    def assign(self, assignment: Assignment) -> None:
        """Queues a shard behind those that are held."""
        with self._lock:
            self._held[assignment.planned.id] = _Held(assignment)
            self._queue.append(assignment)
            self._lock.notify_all()

    def leave(self, shard: str) -> None:
        """Stops working on a shard: it is done, or another's."""
        with self._lock:
            held = self._held.pop(shard, None)
        if held is not None and held.work is not None:
            held.work.left.set()

    def stop(self) -> None:
        """Ends `run` after the image in the model, with what is masked committed."""
        self._stop.set()

    # ---- the work ---------------------------------------------------------------------------------------------------

    def run(self) -> Iterator[list[Event]]:
        """Runs what is assigned until `stop`, yielding what happened, soon after it did.

        Raises ModelFailure and DeviceLost: this process, or its node, can do no more.
        """
        waiting: list[Event] = []
        spoken = 0.0
        with log_fields(run=self._job.run_id, worker=self._job.name):
            for event in self._events():
                waiting.append(event)
                now = time.monotonic()
                if self._urgent(event) or now - spoken >= self._job.report_every_s:
                    yield waiting
                    waiting, spoken = [], now
        if waiting:
            yield waiting

    def _urgent(self, event: Event) -> bool:
        """What decides something at the driver. Of a shard that has killed a worker, every image."""
        if isinstance(event, (ImageStarted, ImageDone)):
            held = self._held.get(event.shard)
            return held is not None and held.assignment.careful
        return True

    def _events(self) -> Iterator[Event]:
        assert self._runner is not None, "prepare() comes first"
        assert self._metrics is not None
        while not self._stop.is_set():
            ended = threading.Event()
            try:
                for event in self._runner.run(self._work(ended)):
                    self._metrics.count(event)
                    reported: list[Event] = [event]
                    if isinstance(event, SliceCommitted) and event.record.final:
                        reported.append(ShardDone(event.record.shard))
                    for each in reported:
                        self._forget(each)  # before the driver hears of it, and may give it out again, to us too
                        yield each
            except (ModelFailure, DeviceLost):
                raise
            except DataEngineError as error:  # the store, most likely: the driver decides what becomes of the shards
                log.warning("the run broke off: %s", error)
                for held in self._drop_everything(ended):
                    yield not_recorded(held.assignment.planned.shard, error)

    def _work(self, ended: threading.Event) -> Iterator[ShardWork | ShardDone | ShardFailed]:
        """What the runner's reader takes next; asks the store where each shard stands, as others may have gone on.

        A reader may outlive its run by a while. Once that has `ended`, it must not take what is meant for the next.
        """
        while (assignment := self._next(ended)) is not None:
            shard = assignment.planned.id
            held = self._held.get(shard)
            if held is None or held.assignment is not assignment:
                continue  # it was left before its turn
            try:
                work = self._begin(assignment)
            except (DataEngineError, FileNotFoundError) as error:  # of this shard's records, and nobody else's
                yield not_recorded(assignment.planned.shard, error)
                continue
            if work is None:
                yield ShardDone(shard)
                continue
            with self._lock:
                if self._held.get(shard) is not held:
                    continue  # it was left meanwhile
                held.work = work
            yield work

    def _next(self, ended: threading.Event) -> Assignment | None:
        with self._lock:
            while not (ended.is_set() or self._stop.is_set()):
                if self._queue:
                    return self._queue.popleft()
                self._lock.wait(_POLL_S)
        return None

    def _begin(self, assignment: Assignment) -> ShardWork | None:
        shard = assignment.planned.id
        start, found = where_it_stands(self._job.output, shard, assignment.start)
        if start is None:
            return None
        return ShardWork(
            assignment.planned,
            start,
            seen_ids(self._job.output, shard, start, found) if assignment.planned.shard.kind == "tar" else (),
            careful=assignment.careful,
            quarantined=dict(assignment.quarantined),
        )

    def _forget(self, event: Event) -> None:
        """Of a shard that has ended here, unless it was given again since."""
        if not isinstance(event, (SliceLost, ShardFailed, ShardDone)):
            return
        with self._lock:
            held = self._held.get(event.shard)
            stale = isinstance(event, SliceLost) and not (held and held.work and held.work.left.is_set())
            if held is not None and not stale:
                del self._held[event.shard]

    def _drop_everything(self, ended: threading.Event) -> list[_Held]:
        with self._lock:
            ended.set()
            dropped = list(self._held.values())
            self._held.clear()
            self._queue.clear()
        return dropped


def not_recorded(shard: Shard, error: Exception) -> ShardFailed:
    """A shard whose records could not be read or written. Whose fault that is: the store's, unless a record is bad."""
    if not isinstance(error, StorageError):
        return ShardFailed(shard.id, shard.uri, str(error))
    cause = error.__cause__
    full = isinstance(cause, OSError) and cause.errno in _FULL
    return ShardFailed(shard.id, shard.uri, str(error), permanent=full or not passes(cause), of_store=True)


def where_it_stands(root: str, shard: str, known: Remaining) -> tuple[Remaining | None, list[CommitRecord]]:
    """From where a shard goes on by what its store holds now, None at its end; and the records found beyond `known`."""
    found: list[CommitRecord] = []
    at = known
    while True:
        uri = join(root, commit_file(shard, at.slice))
        try:
            record = CommitRecord.from_json(read_bytes(uri), uri)
        except FileNotFoundError:
            return at, found
        found.append(record)
        if record.final:
            return None, found
        at = after(record)


def seen_ids(root: str, shard: str, start: Remaining, found: list[CommitRecord]) -> set[str]:
    """Ids of a tar's committed images: its reader needs them to name duplicates as an unbroken run would."""
    if not start.image:
        return set()
    dataset = MaskDataset(root)
    known = {record.slice: record for record in found}
    ids: set[str] = set()
    for index in range(start.slice):
        uri = join(root, commit_file(shard, index))
        record = known.get(index) or CommitRecord.from_json(read_bytes(uri), uri)
        ids.update(dataset.image_ids(record))
    return ids
