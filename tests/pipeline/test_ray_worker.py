"""A cluster's worker in this process: what it is given, told to leave and given again is neither lost nor kept."""

from __future__ import annotations

import errno
import logging
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from integration.ray_job import cluster_config, write_tars

from data_engine import __version__
from data_engine.config import resolve
from data_engine.dataset.commits import commit_file, read_commits
from data_engine.errors import ConfigError, DatasetError, StorageError
from data_engine.pipeline.events import Event, ImageDone, ImageStarted, ShardDone, ShardFailed, SliceCommitted
from data_engine.pipeline.job import generate
from data_engine.pipeline.plan import JobPlan, Remaining, make_plan, remaining, write_plan

pytest.importorskip("ray")

from data_engine.pipeline import ray_worker
from data_engine.pipeline.ray_cluster import from_any_folder
from data_engine.pipeline.ray_worker import Assignment, ClusterWorker, Unfit, WorkerJob, not_recorded


@pytest.fixture
def job(tmp_path: Path) -> tuple[Path, JobPlan]:
    """An output with the plan of three tars of four images."""
    tars = write_tars(tmp_path / "tars", 3, 4)
    plan = make_plan(tars, cluster_config(tmp_path))
    write_plan(str(tmp_path / "out"), plan)
    return tmp_path / "out", plan


@pytest.fixture
def worker(job: tuple[Path, JobPlan], monkeypatch: pytest.MonkeyPatch) -> ClusterWorker:
    output, plan = job
    monkeypatch.setattr(ClusterWorker, "hello", lambda self: "here")
    made = ClusterWorker(
        WorkerJob(
            name="w0",
            run_id="run",
            output=str(output),
            plan=replace(plan, shards=()),
            metadata=plan.metadata(),
            config=cluster_config(output.parent).model_dump(mode="json"),
            code_version=__version__,
            torch_version=torch.__version__,
            wants_gpu=False,
            threads=1,
            report_every_s=0.2,
            log_level=logging.WARNING,
            log_json=False,
        )
    )
    made.prepare()
    return made


def assignment(plan: JobPlan, number: int, **changes: object) -> Assignment:
    return replace(Assignment(plan.shards[number], Remaining(0, 0, None), False, ()), **changes)  # type: ignore[arg-type]


def until(events: Iterator[list[Event]], *wanted: Event) -> list[Event]:
    """What is reported until all of `wanted` has been."""
    heard: list[Event] = []
    for batch in events:
        heard += batch
        if all(event in heard for event in wanted):
            return heard
    raise AssertionError(f"the worker stopped before {wanted}: {heard}")


def test_a_node_without_the_drivers_output_is_unfit_and_fills_no_folder_of_its_own(
    worker: ClusterWorker, job: tuple[Path, JobPlan]
) -> None:
    output, _ = job
    output.rename(output.with_name("not mounted here"))
    with pytest.raises(Unfit, match=r"/out on the node is not the driver's folder .*mount the same one on all nodes"):
        worker.prepare()
    assert not output.exists()


def test_a_worker_in_another_folder_writes_to_the_same_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = resolve({"model": {"name": "models/tiny.safetensors"}}, "")
    output, settings = from_any_folder("out", model)
    assert (output, settings["model"]["name"]) == (str(tmp_path / "out"), str(tmp_path / "models/tiny.safetensors"))
    output, settings = from_any_folder("s3://bucket/out", resolve({"model": {"name": "starter"}}, ""))
    assert (output, settings["model"]["name"]) == ("s3://bucket/out", "starter")


def test_a_shard_that_is_left_and_given_again_is_run(worker: ClusterWorker, job: tuple[Path, JobPlan]) -> None:
    _, plan = job
    worker.assign(assignment(plan, 0))
    worker.leave(plan.shards[0].id)
    worker.assign(assignment(plan, 1))
    worker.assign(assignment(plan, 0))
    until(worker.run(), ShardDone(plan.shards[0].id), ShardDone(plan.shards[1].id))
    worker.stop()


def test_a_shard_that_is_left_while_the_store_is_asked_is_not_run(
    worker: ClusterWorker, job: tuple[Path, JobPlan], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, plan = job
    real = ray_worker.where_it_stands

    def slow(root: str, shard: str, known: Remaining) -> object:
        if shard == plan.shards[0].id:
            worker.leave(shard)
        return real(root, shard, known)

    monkeypatch.setattr(ray_worker, "where_it_stands", slow)
    worker.assign(assignment(plan, 0))
    worker.assign(assignment(plan, 1))
    heard = until(worker.run(), ShardDone(plan.shards[1].id))
    worker.stop()
    assert {event.shard for event in heard if isinstance(event, ImageDone)} == {plan.shards[1].id}


def test_a_shard_that_others_have_done_is_reported_so(worker: ClusterWorker, job: tuple[Path, JobPlan]) -> None:
    output, plan = job
    generate(plan.input, str(output), cluster_config(output.parent, "run.engine=local"))
    worker.assign(assignment(plan, 2))
    heard = until(worker.run(), ShardDone(plan.shards[2].id))
    worker.stop()
    assert heard == [ShardDone(plan.shards[2].id)]


def test_a_shard_that_others_have_begun_goes_on_where_they_stopped(
    worker: ClusterWorker, job: tuple[Path, JobPlan]
) -> None:
    output, plan = job
    generate(plan.input, str(output), cluster_config(output.parent, "run.engine=local"))
    second = output / commit_file(plan.shards[0].id, 1)
    second.unlink()
    worker.assign(assignment(plan, 0))
    heard = until(worker.run(), ShardDone(plan.shards[0].id))
    worker.stop()
    assert [event.record.slice for event in heard if isinstance(event, SliceCommitted)] == [1]
    assert remaining(plan, read_commits(str(output))) == {}


def test_a_damaged_record_fails_its_own_shard_only(worker: ClusterWorker, job: tuple[Path, JobPlan]) -> None:
    output, plan = job
    damaged = output / commit_file(plan.shards[0].id, 0)
    damaged.parent.mkdir(parents=True)
    damaged.write_text("not json")
    worker.assign(assignment(plan, 1))
    worker.assign(assignment(plan, 0))
    heard = until(worker.run(), ShardDone(plan.shards[1].id))
    while not any(isinstance(event, ShardFailed) for event in heard):
        heard += next(worker.run())
    worker.stop()
    assert [event.shard for event in heard if isinstance(event, ShardFailed)] == [plan.shards[0].id]


def test_an_output_that_cannot_be_written_is_no_fault_of_the_shards(
    worker: ClusterWorker, job: tuple[Path, JobPlan]
) -> None:
    output, plan = job
    (output / "images").write_text("in the way")
    worker.assign(assignment(plan, 0))
    worker.assign(assignment(plan, 1))
    failures = []
    for batch in worker.run():
        failures += [event for event in batch if isinstance(event, ShardFailed)]
        if len(failures) == 2:
            worker.stop()
    assert {failure.shard for failure in failures} == {plan.shards[0].id, plan.shards[1].id}
    assert all(failure.of_store and failure.permanent for failure in failures)
    assert all("its folder is a file" in failure.message for failure in failures)


def test_what_is_given_after_a_run_broke_off_is_done(worker: ClusterWorker, job: tuple[Path, JobPlan]) -> None:
    """The reader of the broken run still waits for work then, and must not take it."""
    output, plan = job
    in_the_way = output / "images"
    in_the_way.write_text("for now")
    events = worker.run()
    for _ in range(3):
        worker.assign(assignment(plan, 0))
        while not any(isinstance(event, ShardFailed) for event in next(events)):
            pass
    in_the_way.unlink()
    for number in range(3):
        worker.assign(assignment(plan, number))
    until(events, *(ShardDone(shard.id) for shard in plan.shards))
    worker.stop()
    assert [event for batch in events for event in batch] == []


@pytest.mark.parametrize(
    ("cause", "lasting"),
    [
        (ConnectionError("reset"), False),
        (TimeoutError(), False),
        (OSError(errno.ENOSPC, "full"), True),
        (PermissionError("denied"), True),
        (None, True),
    ],
)
def test_a_store_that_is_away_is_told_from_one_that_refuses(
    job: tuple[Path, JobPlan], cause: Exception | None, lasting: bool
) -> None:
    shard = job[1].shards[0].shard
    error = StorageError("it says no")
    error.__cause__ = cause
    assert not_recorded(shard, error) == ShardFailed(shard.id, shard.uri, "it says no", lasting, of_store=True)
    assert not_recorded(shard, DatasetError("a bad record")) == ShardFailed(shard.id, shard.uri, "a bad record")


def test_of_a_suspect_nothing_is_touched_before_the_image_before_it_is_reported(
    worker: ClusterWorker, job: tuple[Path, JobPlan], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, plan = job
    touched: list[str] = []
    from data_engine.pipeline import shard_reader

    real = shard_reader._decoded_bytes

    def fetched(image: object) -> int:
        touched.append(image.image_id)  # type: ignore[attr-defined]
        return real(image)  # type: ignore[arg-type]

    monkeypatch.setattr(shard_reader, "_decoded_bytes", fetched)
    worker.assign(assignment(plan, 0, careful=True))
    done = 0
    for batch in worker.run():
        for event in batch:
            if isinstance(event, ImageStarted):
                assert len(touched) <= done + 1
            done += isinstance(event, ImageDone)
        if ShardDone(plan.shards[0].id) in batch:
            break
    worker.stop()
    assert done == 4


def test_stopping_commits_what_is_masked(worker: ClusterWorker, job: tuple[Path, JobPlan]) -> None:
    output, plan = job
    worker.assign(assignment(plan, 0, careful=True))
    for batch in worker.run():
        if any(isinstance(event, ImageDone) for event in batch):
            worker.stop()
    assert sum(record.totals.images for record in read_commits(str(output))) >= 1
    assert not [thread for thread in threading.enumerate() if thread.name == "read" and thread.is_alive()]


def test_a_single_writer_cannot_be_promised_on_a_cluster(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="single_writer cannot be promised with engine ray"):
        cluster_config(tmp_path, "run.single_writer=true")
