"""A whole job, from an input to a complete dataset: settle the plan, let an engine do the rest, write the manifest."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from data_engine.config import JobConfig
from data_engine.dataset.commits import CommitRecord, Totals, read_commits
from data_engine.dataset.manifest import MANIFEST_FILE, make_manifest, read_manifest, read_manifest_commits
from data_engine.errors import DatasetError, SourceError
from data_engine.pipeline.commit import check_store, delete, new_owner, put, put_if_absent
from data_engine.pipeline.events import BatchShrunk, Event, ShardFailed, SliceCommitted
from data_engine.pipeline.plan import (
    JobPlan,
    is_of,
    make_plan,
    new_inputs,
    now,
    plan_without_shards,
    read_job,
    read_plan,
    remaining,
    with_links,
    write_plan,
)
from data_engine.pipeline.preflight import check_model
from data_engine.pipeline.progress import Progress
from data_engine.pipeline.run_log import RunLog
from data_engine.stop_signals import stop_signals
from data_engine.storage import join

_MANY_RECORDS = 20_000  # reading them takes so long that people wonder


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
    points_at_once: int | None = None  # the fewest prompts at a time that memory was left for, if it ran out

    @property
    def exit_code(self) -> int:
        """0 all rows are good, 3 finished with failed images, 130 stopped before the end, 1 shards are missing."""
        if self.interrupted:
            return 130
        if not self.complete:
            return 1
        return 3 if self.totals.failed or self.damaged_shards else 0


@dataclass(frozen=True, slots=True)
class Job:
    """What an engine needs: the plan to carry out, and where to say what happens."""

    output: str
    plan: JobPlan
    config: JobConfig
    progress: Progress
    report: JobReport
    stopping: Callable[[], bool]
    run_log: RunLog
    known: dict[str, CommitRecord]  # by file: read or heard of, so that none is read twice

    @property
    def run_id(self) -> str:
        return self.run_log.run_id

    def event(self, event: Event) -> None:
        self.progress.event(event)
        self.run_log.event(event)
        if isinstance(event, SliceCommitted):
            self.report.new = self.report.new + event.record.totals
            self.known[event.record.file] = event.record
        elif isinstance(event, BatchShrunk):
            self.report.points_at_once = min(event.points, self.report.points_at_once or event.points)

    def commits(self) -> list[CommitRecord]:
        """Every slice that is committed now, by whomever."""
        return _read_commits(self.output, self.progress, self.known)

    def shard_failed(self, failed: ShardFailed) -> None:
        """The shard is given up for this run."""
        self.report.failed_shards.append(failed)


def generate(
    input_uri: str,
    output: str,
    config: JobConfig,
    *,
    limit: int | None = None,
    progress: Progress | None = None,
) -> JobReport:
    """Masks every image of the input into the dataset at `output`; goes on where an earlier run of the job stopped.

    Stops soon after SIGINT, SIGTERM or SIGHUP, with everything committed kept. Raises PlanMismatch when the output
    belongs to another job; SourceError, StorageError, CheckpointError, ModelFailure or ClusterError when this one
    cannot run.
    """
    begun = time.monotonic()
    progress = progress or Progress.silent()
    with stop_signals(progress.note) as stop:
        plan = _settle_plan(input_uri, output, config, limit, progress)
        commits = _committed(output, plan, progress)
        report = JobReport(plan, Totals.sum(c.totals for c in commits), Totals(), 0.0, complete=False)
        progress.start(plan, commits, resumed=bool(commits))
        if remaining(plan, commits):
            run_log = RunLog(output, new_run_id())
            known = {record.file: record for record in commits}
            job = Job(output, plan, config, progress, report, stop.asked, run_log, known)
            try:
                with stop.gently():  # it ends between images
                    _engine(config)(job, commits)
            finally:
                run_log.write()
            report.interrupted = stop.asked()
            commits = job.commits()
    report.totals = Totals.sum(c.totals for c in commits)
    report.damaged_shards = [str(c.damage["message"]) for c in commits if c.damage]
    if not remaining(plan, commits):
        _write_manifest(output, plan, commits, config.run.single_writer)
        report.complete, report.interrupted = True, False
    report.seconds = time.monotonic() - begun
    progress.finish(report)
    return report


def new_run_id() -> str:
    """Of one run of a job: when it began, and a token."""
    return f"{now().replace(':', '').replace('-', '')[:15]}-{uuid.uuid4().hex[:6]}"


def _engine(config: JobConfig) -> Callable[[Job, list[CommitRecord]], None]:
    if config.run.engine == "ray":
        from data_engine.pipeline.ray_cluster import run_on_cluster

        return run_on_cluster
    from data_engine.pipeline.local import run_here

    return run_here


def expected_plan(
    input_uri: str, output: str, config: JobConfig, limit: int | None, note: Callable[[str], None]
) -> tuple[JobPlan, bool]:
    """The plan that a run would carry out, and whether it stands at the output already. Writes nothing.

    note: told what people should know of it.
    """
    job = read_job(output)
    if job is None:
        plan = make_plan(input_uri, config, limit)
        for warning in plan.warnings:
            note(f"warning: {warning}")
        return plan, False
    try:
        current = make_plan(input_uri, config, limit)
    except SourceError as error:
        stands = _plan_at(output)
        stands.refuse_unless_same(plan_without_shards(input_uri, config, limit), output)
        note(f"warning: the input cannot be listed now ({error}); going on with the plan")
        return stands, True
    if is_of(job, current):  # a list of millions of images need not be there twice
        return current, True
    stands = _plan_at(output)
    stands.refuse_unless_same(current, output)
    if gained := new_inputs(stands, current):
        note(
            f"warning: the input has {gained:,} entries that are not in this dataset's plan; "
            "they are left out (mask them into another output)"
        )
    return with_links(stands, current), True


def _plan_at(output: str) -> JobPlan:
    plan = read_plan(output)
    assert plan is not None, "it was there a moment ago"
    return plan


def _settle_plan(input_uri: str, output: str, config: JobConfig, limit: int | None, progress: Progress) -> JobPlan:
    """The plan that stands at the output: the one that is there, if it is for the same job, or a new one."""
    plan, stands = expected_plan(input_uri, output, config, limit, progress.note)
    if not stands:
        check_model(config)
        check_store(output, config.run.single_writer)
        return write_plan(output, plan, config.run.single_writer)
    if read_manifest(output) is None:
        check_store(
            output, config.run.single_writer
        )  # the run before may have been told to accept what this one may not
    return plan


def _committed(output: str, plan: JobPlan, progress: Progress) -> list[CommitRecord]:
    """Of a complete dataset what its manifest holds: nothing is left to do, and nothing else is read."""
    manifest = read_manifest(output)
    if manifest is None:
        return _read_commits(output, progress)
    commits = read_manifest_commits(output, manifest)
    if manifest.fingerprint != plan.fingerprint or remaining(plan, commits):
        raise DatasetError(
            f"{join(output, MANIFEST_FILE)} is not of this plan; `data-engine audit` shows what is there"
        )
    return commits


def _read_commits(
    output: str, progress: Progress, known: Mapping[str, CommitRecord] | None = None
) -> list[CommitRecord]:
    def say(read: int, total: int) -> None:
        if total >= _MANY_RECORDS:
            progress.note(f"reading the records of what is committed: {read:,} of {total:,}")

    return read_commits(output, known or {}, say)


def _write_manifest(output: str, plan: JobPlan, commits: list[CommitRecord], single_writer: bool) -> None:
    if read_manifest(output) is not None:
        return
    manifest, table = make_manifest(plan.fingerprint, commits, new_owner(), now())
    uri = join(output, manifest.commits.file)
    put(uri, table)
    if not put_if_absent(join(output, MANIFEST_FILE), manifest.to_json(), single_writer):
        delete(uri)  # another process was first; its table says the same
