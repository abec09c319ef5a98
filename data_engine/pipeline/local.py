"""The local engine: a whole job in this process, from an input to a complete dataset, resumable at any moment."""

from __future__ import annotations

import random
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType

from data_engine.config import JobConfig
from data_engine.dataset.commits import MANIFEST_FILE, CommitRecord, Manifest, Totals, read_commits, read_manifest
from data_engine.dataset.reader import MaskDataset
from data_engine.errors import SourceError
from data_engine.masks.generator import MaskGenerator
from data_engine.pipeline.commit import check_store, new_owner, put_if_absent
from data_engine.pipeline.events import ShardFailed, SliceCommitted, SliceLost
from data_engine.pipeline.plan import JobPlan, make_plan, new_inputs, now, read_plan, remaining, write_plan
from data_engine.pipeline.progress import Progress
from data_engine.pipeline.shard_runner import ShardRunner, ShardWork
from data_engine.sam.segmenter import load_segmenter
from data_engine.storage import join


@dataclass(slots=True)
class JobReport:
    """What a run of a job came to."""

    plan: JobPlan
    totals: Totals  # of the whole dataset as it stands
    new: Totals  # committed by this run
    seconds: float
    complete: bool
    interrupted: bool = False
    failed_shards: list[ShardFailed] = field(default_factory=list)
    damaged_shards: list[str] = field(default_factory=list)  # messages

    @property
    def exit_code(self) -> int:
        """0 all rows are good, 3 some images or shards failed, 130 stopped before the end."""
        if self.interrupted:
            return 130
        return 3 if self.totals.failed or self.failed_shards or self.damaged_shards else 0


def generate(
    input_uri: str,
    output: str,
    config: JobConfig,
    *,
    limit: int | None = None,
    progress: Progress | None = None,
) -> JobReport:
    """Masks every image of the input into the dataset at `output`; goes on where an earlier run of the job stopped.

    Stops soon after SIGINT or SIGTERM, with everything committed kept. Raises PlanMismatch when the output belongs to
    another job, SourceError, StorageError, CheckpointError or ModelFailure when this one cannot run.
    """
    begun = time.monotonic()
    progress = progress or Progress.silent()
    plan = _settle_plan(input_uri, output, config, limit, progress)
    commits = read_commits(output)
    report = JobReport(plan, Totals.sum(c.totals for c in commits), Totals(), 0.0, complete=False)
    todo = remaining(plan, commits)
    progress.start(plan, commits, resumed=bool(commits))
    if todo:
        progress.note(f"loading {config.model.name}")
        segmenter = load_segmenter(config.model.name, config.run.device, config.model.precision)
        progress.note(f"running on {segmenter.device} in {segmenter.precision} precision")
        generator = MaskGenerator(segmenter, config.masks, memory_budget=config.run.mask_memory)
        with _stop_signals(progress) as stopping:
            _run_shards(output, plan, config, generator, stopping, report, progress)
            report.interrupted = stopping()
    commits = read_commits(output)
    report.totals = Totals.sum(c.totals for c in commits)
    report.damaged_shards = [str(c.damage["message"]) for c in commits if c.damage]
    if not remaining(plan, commits):
        _write_manifest(output, plan, commits, config.run.single_writer)
        report.complete, report.interrupted = True, False
    report.seconds = time.monotonic() - begun
    progress.finish(report)
    return report


def _settle_plan(input_uri: str, output: str, config: JobConfig, limit: int | None, progress: Progress) -> JobPlan:
    """The plan that stands at the output: the one that is there, if it is for the same job, or a new one."""
    stands = read_plan(output)
    if stands is None:
        check_store(output, config.run.single_writer)
        plan = make_plan(input_uri, config, limit)
        for warning in plan.warnings:
            progress.note(f"warning: {warning}")
        return write_plan(output, plan, config.run.single_writer)
    try:
        current = make_plan(input_uri, config, limit)
    except SourceError as error:
        progress.note(f"warning: the input cannot be listed now ({error}); going on with the plan")
        return stands
    stands.refuse_unless_same(current, output)
    if gained := new_inputs(stands, current):
        progress.note(
            f"warning: the input has {gained} entries that are not in this dataset's plan; "
            "they are left out (mask them into another output)"
        )
    return stands


def _run_shards(
    output: str,
    plan: JobPlan,
    config: JobConfig,
    generator: MaskGenerator,
    stopping: Callable[[], bool],
    report: JobReport,
    progress: Progress,
) -> None:
    """Runs what is left of the plan until nothing is, or until only shards are left that cannot be read."""
    runner = ShardRunner(output, plan, config, generator, stopping)
    shards = {planned.id: planned for planned in plan.shards}
    unreadable: set[str] = set()
    shared = False  # another process commits to this output as well
    while not stopping():
        commits = read_commits(output)
        todo = {key: start for key, start in remaining(plan, commits).items() if key not in unreadable}
        if not todo:
            return
        order = list(todo)
        if shared:
            random.shuffle(order)  # two drivers that meet should part
        queue = deque(order)

        def work(queue: deque[str] = queue, todo: dict = todo, commits: list = commits) -> Iterator[ShardWork]:
            while queue:
                key = queue.popleft()
                yield ShardWork(shards[key], todo[key], _seen_ids(output, key, todo[key].image, commits))

        for event in runner.run(work()):
            progress.event(event)
            if isinstance(event, SliceCommitted):
                report.new = report.new + event.record.totals
            elif isinstance(event, SliceLost):
                shared = True
            elif isinstance(event, ShardFailed):
                unreadable.add(event.shard)
                report.failed_shards.append(event)


def _seen_ids(output: str, shard: str, image: int, commits: list[CommitRecord]) -> set[str]:
    """Ids of a shard's committed images: a tar's reader needs them to name duplicates as an unbroken run would."""
    if not image:
        return set()
    dataset = MaskDataset(output)
    mine = [record for record in commits if record.shard == shard]
    return {image_id for record in mine for image_id in dataset.image_ids(record)}


def _write_manifest(output: str, plan: JobPlan, commits: list[CommitRecord], single_writer: bool) -> None:
    if read_manifest(output) is not None:
        return
    manifest = Manifest(
        fingerprint=plan.fingerprint,
        totals=Totals.sum(c.totals for c in commits),
        commits=tuple(commits),
        owner=new_owner(),
        created_at=now(),
    )
    put_if_absent(join(output, MANIFEST_FILE), manifest.to_json(), single_writer)


@contextmanager
def _stop_signals(progress: Progress) -> Iterator[Callable[[], bool]]:
    """First SIGINT or SIGTERM: stop between images. Second: at once. Only the main thread can listen to signals."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop.is_set
        return

    def on_signal(number: int, _: FrameType | None) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()
        progress.note(f"{signal.Signals(number).name}: stopping; once more to stop at once")

    previous = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop.is_set
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
