"""The Ray engine: a thin adapter. It hires actors, tells the scheduler what happens, and does what the scheduler says.

Image bytes go from the store to the node that needs them and never through the driver or Ray's object store.
"""

from __future__ import annotations

import logging
import math
import time
from collections import Counter
from dataclasses import dataclass, replace
from itertools import count
from typing import Any, cast

import ray
import torch
from ray.exceptions import RayError

from data_engine import __version__
from data_engine.config import JobConfig, RaySettings
from data_engine.dataset.commits import CommitRecord
from data_engine.errors import ClusterError, ModelFailure
from data_engine.pipeline.events import Event, ShardFailed, SliceCommitted, SliceLost
from data_engine.pipeline.job import Job
from data_engine.pipeline.logs import logs_are_json
from data_engine.pipeline.plan import Remaining, after, remaining
from data_engine.pipeline.progress import ClusterState, duration
from data_engine.pipeline.ray_connection import connected
from data_engine.pipeline.ray_losses import draining_nodes, loss_of, node_of, started_actors
from data_engine.pipeline.ray_metrics import DriverMetrics
from data_engine.pipeline.ray_worker import Assignment, ClusterWorker, Unfit, WorkerFacts, WorkerJob
from data_engine.pipeline.scheduler import Assign, Command, Dismiss, GiveUp, Leave, Loss, Policy, Scheduler, ShardTask
from data_engine.sam.checkpoints import registry
from data_engine.sam.remote_checkpoints import is_url
from data_engine.storage import is_local, local_path

log = logging.getLogger(__name__)

_WAIT_S = 0.5
_LOOK_EVERY_S = 1.0
_NODES_EVERY_S = 5.0
_STARTS_EVERY_S = 60.0
_STOP_GRACE_S = 150.0  # longer than workers wait for a store
_PAUSE_AFTER_NO_ANSWER_S = 5.0
_REPORTS_A_SECOND = 2000  # that a driver takes with ease


def run_on_cluster(job: Job, commits: list[CommitRecord]) -> None:
    """Does what is left of the job on a cluster. Raises ClusterError when no worker can do it."""
    with connected(job.config.run.ray.address):
        ClusterRun(job, commits).run()


@dataclass(slots=True)
class _Hired:
    """An actor, from when it is asked for until it is lost."""

    actor: Any
    hello: Any  # ObjectRef of its first answer: it has a place
    since: float
    node: str | None = None
    started: float | None = None  # when its process was first seen, if it has not spoken yet
    prepared: Any = None  # ObjectRef of its WorkerFacts
    stream: Any = None  # of its reports
    stopping: bool = False

    @property
    def state(self) -> str:
        return "working" if self.stream is not None else "starting" if self.prepared is not None else "pending"

    @property
    def awaited(self) -> Any:
        return self.stream or self.prepared or self.hello


class ClusterRun:
    """One run of a job on the cluster this process is connected to."""

    def __init__(self, job: Job, commits: list[CommitRecord]) -> None:
        self._job = job
        self._settings: RaySettings = job.config.run.ray
        self._shards = {planned.id: planned for planned in job.plan.shards}
        self._todo: dict[str, Remaining] = remaining(job.plan, commits)
        # The scheduler begins with those of most images. Where they are not counted, the bytes tell.
        largest_first = sorted(self._todo, key=lambda shard: -(self._shards[shard].shard.size or 0))
        tasks = [ShardTask(shard, self._images_left(shard)) for shard in largest_first]
        self._scheduler = Scheduler(tasks, _policy(job))
        self._hired: dict[str, _Hired] = {}
        self._numbers = count()
        self._gpus, self._cpus = _resources_of_a_worker(job)
        self._metadata = job.plan.metadata()
        self._metrics = DriverMetrics()
        self._looked = self._saw_nodes = self._saw_starts = -math.inf
        self._hopeful = time.monotonic()  # when there last was a node that may be fit
        self._capacity = 0  # places for workers, now
        self._demand = 0  # the most there have been: what an autoscaler should bring back
        self._next_hire = -math.inf
        self._store_away_since: float | None = None
        self._stop_asked: float | None = None
        self._given_up: str | None = None

    def run(self) -> None:
        job, scheduler = self._job, self._scheduler
        job.progress.from_commits()
        self._see_nodes()
        resources = f"{self._gpus:g} GPU, {self._cpus:g} CPU" if self._gpus else f"{self._cpus:g} CPU"
        if not self._settings.workers and not self._capacity:
            raise ClusterError(
                f"no node of the cluster has what a worker needs ({resources}); set run.ray.gpus_per_worker and "
                "run.ray.cpus_per_worker, or run.ray.workers so that an autoscaler sees the demand"
            )
        job.progress.note(f"on Ray, {self._wanted()} workers of {resources} each")
        self._mention_cpus()
        try:
            while not scheduler.finished and not self._out_of_patience():
                self._hire()
                self._listen()
                self._look_after()
        finally:
            self._show()
            for hired in self._hired.values():
                ray.kill(hired.actor)
        for shard, message in scheduler.failed.items():
            job.shard_failed(ShardFailed(shard, self._shards[shard].shard.uri, message))
        if self._given_up is not None:
            remedy = "" if "the same command" in self._given_up else "; the same command goes on"
            raise ClusterError(f"{self._given_up}. What is committed is safe{remedy}")

    def _mention_cpus(self) -> None:
        """GPU nodes may be on their way, and would be left idle."""
        if self._gpus or self._job.config.run.device != "auto" or self._settings.gpus_per_worker is not None:
            return
        also = "" if self._settings.workers else " and run.ray.workers"
        self._job.progress.note(
            "warning: no node of the cluster has a GPU: workers will use CPUs; "
            f"set run.ray.gpus_per_worker=1{also} to wait for GPU nodes"
        )

    # ---- workers ----------------------------------------------------------------------------------------------------

    def _wanted(self) -> int:
        return min(self._settings.workers or self._demand, self._scheduler.unfinished)

    def _hire(self) -> None:
        now = time.monotonic()
        if self._stop_asked is not None or now < self._next_hire or self._scheduler.store.pauses(now):
            return
        for _ in range(self._wanted() - len(self._hired)):
            name = f"w{next(self._numbers)}"
            self._hired[name] = self._ask_for(name)

    def _ask_for(self, name: str) -> _Hired:
        options: dict[str, Any] = {"num_cpus": self._cpus, "num_gpus": self._gpus}
        if self._scheduler.excluded:
            options["label_selector"] = {"ray.io/node-id": f"!in({','.join(self._scheduler.excluded)})"}
        # Restarts and retries are the scheduler's business. `run` keeps one thread, commands arrive on others.
        as_actor = cast(Any, ray.remote)(concurrency_groups={"control": 1}, max_restarts=0, max_task_retries=0)
        actor = as_actor(ClusterWorker).options(**options).remote(self._worker_job(name))
        return _Hired(actor, actor.hello.remote(), time.monotonic())

    def _worker_job(self, name: str) -> WorkerJob:
        job = self._job
        output, config = from_any_folder(job.output, job.config)
        return WorkerJob(
            name=name,
            run_id=job.run_id,
            output=output,
            plan=replace(job.plan, shards=()),
            metadata=self._metadata,
            config=config,
            code_version=__version__,
            torch_version=torch.__version__,
            wants_gpu=self._gpus > 0,
            threads=max(1, int(self._cpus)),
            report_every_s=max(0.2, self._wanted() / _REPORTS_A_SECOND),
            log_level=logging.getLogger("data_engine").getEffectiveLevel(),
            log_json=logs_are_json(),
        )

    def _listen(self) -> None:
        """Waits for the first thing that any worker says, then takes what all of them have said."""
        names = {hired.awaited: name for name, hired in self._hired.items()}
        if not names:
            time.sleep(_WAIT_S)
            return
        ready, _ = ray.wait(list(names), num_returns=1, timeout=_WAIT_S)
        if ready:
            ready, _ = ray.wait(list(names), num_returns=len(names), timeout=0)
        for what in ready:
            if (name := names[what]) in self._hired:
                self._hear(name, self._hired[name])

    def _hear(self, name: str, hired: _Hired) -> None:
        now = time.monotonic()
        try:
            if hired.stream is not None:
                events = ray.get(next(hired.stream))
                self._events(events)
                self._obey(self._scheduler.report(name, events, now))
            elif hired.prepared is not None:
                facts: WorkerFacts = ray.get(hired.prepared)
                log.info("worker %s is ready on node %s (%s)", name, facts.node, facts.device)
                hired.stream = hired.actor.run.options(num_returns="streaming").remote()
                self._obey(self._scheduler.worker_ready(name, facts.node, now))
            else:
                hired.node = ray.get(hired.hello)
                hired.prepared, hired.since = hired.actor.prepare.remote(), now
        except StopIteration:
            self._lost(name, Loss.PREEMPTED if hired.stopping else Loss.STOPPED, "it was asked to stop")
        except (RayError, ModelFailure, Unfit) as error:
            hired.node = hired.node or node_of(hired.actor)
            working = hired.stream is not None
            self._lost(name, *loss_of(error, working, lambda: self._node_lives(hired.node)))

    def _events(self, events: list[Event]) -> None:
        for event in events:
            if isinstance(event, SliceCommitted):
                self._todo[event.record.shard] = after(event.record)
            if isinstance(event, ShardFailed):
                if not event.of_store:  # that is said once, and not of every shard
                    self._job.progress.note(f"shard {event.shard}: {event.message}")
            elif not isinstance(event, SliceLost):  # to a second runner of ours, as a rule
                self._job.event(event)

    def _lost(self, name: str, loss: Loss, reason: str) -> None:
        hired = self._hired.pop(name)
        ray.kill(hired.actor)
        unanswered = hired.prepared is None
        if unanswered and (hired.node is None or loss is not Loss.UNFIT):  # the next may come to the same node
            self._next_hire = time.monotonic() + _PAUSE_AFTER_NO_ANSWER_S
        if loss is not Loss.STOPPED:
            log.warning("worker %s on node %s is lost: %s (%s)", name, hired.node, loss.value, reason)
            self._job.progress.note(f"worker {name}: {loss.value}: {reason}")
        self._obey(self._scheduler.worker_lost(name, loss, reason, time.monotonic(), hired.node))

    def _node_lives(self, node: str | None) -> bool:
        return node is None or any(each["NodeID"] == node and each["Alive"] for each in ray.nodes())

    # ---- commands ---------------------------------------------------------------------------------------------------

    def _obey(self, commands: list[Command]) -> None:
        for command in commands:
            match command:
                case Assign(worker, shard, careful, quarantined):
                    assignment = Assignment(self._shards[shard], self._todo[shard], careful, quarantined)
                    self._tell(worker, "assign", assignment)
                case Leave(worker, shard):
                    self._tell(worker, "leave", shard)
                case Dismiss(worker, reason):
                    if (hired := self._hired.pop(worker, None)) is not None:
                        self._job.progress.note(f"worker {worker}: {reason}")
                        ray.kill(hired.actor)
                case GiveUp(reason):
                    self._give_up(reason)

    def _tell(self, worker: str, method: str, *arguments: Any) -> None:
        hired = self._hired.get(worker)
        if hired is not None:
            getattr(hired.actor, method).options(concurrency_group="control").remote(*arguments)

    # ---- now and then -----------------------------------------------------------------------------------------------

    def _look_after(self) -> None:
        now = time.monotonic()
        if self._job.stopping():
            self._ask_to_stop()
        if now - self._looked < _LOOK_EVERY_S:
            return
        self._looked = now
        self._obey(self._scheduler.tick(now))
        self._mention_the_store(now)
        for name, hired in tuple(self._hired.items()):
            if hired.state == "starting" and now - hired.since > self._settings.start_timeout:
                self._lost(name, Loss.UNFIT, f"the model was not loaded within {self._settings.start_timeout:.0f} s")
        if now - self._saw_starts >= min(_STARTS_EVERY_S, self._settings.start_timeout / 20):
            self._see_starts()
        if now - self._saw_nodes >= _NODES_EVERY_S:
            self._see_nodes()
        self._show()

    def _see_starts(self) -> None:
        """Dismisses workers that have a process and never speak, as where a file system hangs on their node.

        Those without one may wait for room, which an autoscaler or another job may make, or for a node that cannot
        start any: they are asked for anew, which costs nobody a try, and may lead elsewhere.
        """
        now = self._saw_starts = time.monotonic()
        pending = [(name, hired) for name, hired in self._hired.items() if hired.state == "pending"]
        if not pending or (started := started_actors()) is None:
            return
        timeout = self._settings.start_timeout
        waiting = 0
        for name, hired in pending:
            node = started.get(hired.actor._actor_id.hex())
            if node is None:
                hired.started = None
                if now - hired.since > timeout:
                    waiting += 1
                    ray.kill(self._hired.pop(name).actor)
                continue
            hired.node, hired.started = node, hired.started if hired.started is not None else now
            if now - hired.started > timeout:
                self._lost(name, Loss.TIMED_OUT, f"its process was started and has not spoken for {timeout:.0f} s")
        if waiting:
            self._job.progress.note(
                f"{waiting:,} workers have found no place or no process in {duration(timeout)}, and are asked for "
                "anew: either the cluster has no room (see `ray status`), or nodes of it cannot start Python"
            )

    def _mention_the_store(self, now: float) -> None:
        store = self._scheduler.store
        if store.away and self._store_away_since is None:
            self._store_away_since = now
            self._job.progress.note(f"waiting for the store, at no shard's expense: {store.message}")
        elif self._store_away_since is not None and not store.away:
            self._job.progress.note(f"the store answers again, after {duration(now - self._store_away_since)}")
            self._store_away_since = None

    def _see_nodes(self) -> None:
        """Counts the places for workers, notices nodes that are about to go, and that none is left."""
        self._saw_nodes = time.monotonic()
        nodes = [node for node in ray.nodes() if node["Alive"]]
        fit = [node for node in nodes if node["NodeID"] not in self._scheduler.excluded]
        self._capacity = sum(self._places(node["Resources"]) for node in fit)
        self._demand = max(self._demand, self._capacity)
        draining = draining_nodes()
        for name, hired in self._hired.items():
            if hired.node in draining and not hired.stopping:
                hired.stopping = True
                self._job.progress.note(f"worker {name}: its node is about to go; it stops after this image")
                self._obey(self._scheduler.worker_draining(name))
                self._tell(name, "stop")
        if self._capacity or any(hired.state != "pending" for hired in self._hired.values()):
            self._hopeful = self._saw_nodes
        patience = self._settings.start_timeout if self._settings.workers else 0.0  # an autoscaler may add nodes
        if self._scheduler.excluded and self._saw_nodes - self._hopeful > patience:
            reasons = "; ".join(sorted(set(self._scheduler.excluded.values())))
            self._give_up(f"no node of the cluster can do the job: {reasons}")

    def _give_up(self, reason: str) -> None:
        self._given_up = self._given_up or reason
        self._ask_to_stop()

    def _ask_to_stop(self) -> None:
        """Workers end the image they are at and commit what is masked."""
        if self._stop_asked is None:
            self._stop_asked = time.monotonic()
            self._scheduler.stop()
            for name in self._hired:
                self._tell(name, "stop")

    def _out_of_patience(self) -> bool:
        waits = self._stop_asked is not None and time.monotonic() - self._stop_asked > _STOP_GRACE_S
        if waits:
            self._job.progress.note(f"workers did not stop within {_STOP_GRACE_S:.0f} s; what they had open is lost")
        return waits

    def _places(self, resources: dict[str, float]) -> int:
        by_gpu = resources.get("GPU", 0.0) / self._gpus if self._gpus else math.inf
        return int(min(by_gpu, resources.get("CPU", 0.0) / self._cpus))

    def _show(self) -> None:
        scheduler = self._scheduler
        shards = {
            "pending": scheduler.waiting,
            "running": scheduler.unfinished - scheduler.waiting,
            "done": len(self._shards) - scheduler.unfinished - len(scheduler.failed),
            "failed": len(scheduler.failed),
        }
        states = Counter(hired.state for hired in self._hired.values())
        workers = {
            "starting": states["pending"] + states["starting"],
            "busy": states["working"] - scheduler.idle,
            "idle": scheduler.idle,
            "excluded": len(scheduler.excluded),
        }
        self._metrics.show(shards, workers, scheduler.retries)
        self._job.progress.cluster(
            ClusterState(shards, workers, scheduler.retries, list(scheduler.workers()), scheduler.done)
        )
        self._job.run_log.sample({"shards": shards, "workers": workers, "retries": dict(scheduler.retries)})

    def _images_left(self, shard: str) -> int | None:
        images = self._shards[shard].images
        return None if images is None else images - self._todo[shard].image


def from_any_folder(output: str, config: JobConfig) -> tuple[str, dict[str, Any]]:
    """Output and settings for workers: their current folder is the one in which their node's Ray was started."""
    settings, name = config.model_dump(mode="json"), config.model.name
    if not is_url(name) and name not in registry():
        settings["model"]["name"] = str(local_path(name))
    return str(local_path(output)) if is_local(output) else output, settings


def _policy(job: Job) -> Policy:
    settings = job.config.run.ray
    return Policy(
        max_in_flight=settings.max_in_flight,
        shard_retries=settings.shard_retries,
        image_deaths=settings.image_deaths,
        image_timeout=settings.image_timeout,
        speculate=Policy().speculate if settings.speculate else None,
    )


def _resources_of_a_worker(job: Job) -> tuple[float, float]:
    """(GPUs, CPUs): what is set, or a GPU each where there are any."""
    settings = job.config.run.ray
    gpus = settings.gpus_per_worker
    if gpus is None:
        wants = job.config.run.device.startswith("cuda")
        has = job.config.run.device == "auto" and any(node["Resources"].get("GPU") for node in ray.nodes())
        gpus = 1.0 if wants or has else 0.0
    return gpus, settings.cpus_per_worker or (float(job.config.run.decode_threads) if gpus else 1.0)
