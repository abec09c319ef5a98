"""Processes and nodes that die under a job on a real Ray cluster: an undisturbed run's rows come out all the same."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from integration.ray_job import cluster_config, write_tars
from integration.test_ray_engine import assert_whole
from pipeline.tiny_job import rows

from data_engine.dataset.commits import read_commits
from data_engine.pipeline.job import JobReport, generate

pytest.importorskip("ray")
pytestmark = pytest.mark.timeout(280)

SHARDS, IMAGES = 6, 10
SLOW = ("masks.points_per_side=12",)  # so that there is time to die in


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, tuple[list[dict], list[dict]]]:
    """Folder with a model, tars, and the rows of an undisturbed local run."""
    folder = tmp_path_factory.mktemp("job")
    tars = write_tars(folder / "tars", SHARDS, IMAGES)
    assert generate(tars, str(folder / "whole"), cluster_config(folder, "run.engine=local", *SLOW)).complete
    return folder, tars, rows(folder / "whole")


def commits(output: Path) -> int:
    return len(list((output / "_commits").glob("*.json"))) if (output / "_commits").is_dir() else 0


def worker_pids() -> list[int]:
    """Processes of actors that are at work, found by the name that Ray gives them."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                name = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if name.startswith(b"ray::ClusterWorker"):
                found.append(int(entry.name))
    return found


@contextmanager
def meanwhile(what: Callable[[], None], output: Path, after_commits: int) -> Iterator[None]:
    """Does it from another thread once so many slices are committed."""
    failures: list[BaseException] = []

    def watch() -> None:
        try:
            while commits(output) < after_commits:
                time.sleep(0.02)
            what()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=watch)
    thread.start()
    yield
    thread.join(60)
    assert not thread.is_alive()
    assert not failures, failures


def check(output: Path, job: tuple[Path, str, Any], report: JobReport) -> None:
    assert report.complete
    assert report.exit_code == 0
    assert_whole(output)
    assert rows(output) == job[2]


def test_killed_workers_cost_nothing(connected: Any, job: Any, tmp_path: Path) -> None:
    def kill_one() -> None:
        for _ in range(2):
            pids = worker_pids()
            assert pids
            os.kill(pids[0], signal.SIGKILL)
            time.sleep(2)

    with meanwhile(kill_one, tmp_path / "out", after_commits=3):
        report = generate(job[1], str(tmp_path / "out"), cluster_config(job[0], *SLOW))
    check(tmp_path / "out", job, report)


def test_a_node_that_goes_costs_nothing_and_one_that_joins_is_used(cluster: Any, job: Any, tmp_path: Path) -> None:
    output = tmp_path / "out"
    spare = cluster.add_node(num_cpus=1)
    process = start_driver(cluster, job, output)
    wait_for_commits(process, output, 3)
    cluster.remove_node(spare, allow_graceful=False)
    cluster.add_node(num_cpus=1)
    process.communicate(timeout=200)
    assert process.returncode == 0
    assert_whole(output)
    assert rows(output) == job[2]


@pytest.mark.slow
def test_a_killed_raylet_costs_nothing(connected: Any, job: Any, tmp_path: Path) -> None:
    node = connected.add_node(num_cpus=1)

    def kill_raylet() -> None:
        node.all_processes["raylet"][0].process.kill()

    with meanwhile(kill_raylet, tmp_path / "out", after_commits=3):
        report = generate(job[1], str(tmp_path / "out"), cluster_config(job[0], *SLOW))
    check(tmp_path / "out", job, report)


def test_a_draining_node_is_left_with_what_is_masked_committed(connected: Any, job: Any, tmp_path: Path) -> None:
    import ray
    from ray._raylet import GcsClient
    from ray.core.generated.autoscaler_pb2 import DrainNodeReason

    alive = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
    notice = DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")

    def drain() -> None:
        deadline = int((time.time() + 60) * 1000)
        accepted, why = GcsClient(address=connected.address).drain_node(alive[-1]["NodeID"], notice, "spot", deadline)
        assert accepted, why

    with meanwhile(drain, tmp_path / "out", after_commits=2):
        report = generate(job[1], str(tmp_path / "out"), cluster_config(job[0], *SLOW))
    check(tmp_path / "out", job, report)


def start_driver(cluster: Any, job: Any, output: Path, **environment: str) -> subprocess.Popen[str]:
    driver = Path(__file__).with_name("ray_driver.py")
    command = [sys.executable, str(driver), cluster.address, job[1], str(output), str(job[0]), *SLOW]
    environment = {**os.environ, **environment}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment)


def wait_for_commits(process: subprocess.Popen[str], output: Path, count: int) -> None:
    while commits(output) < count:
        assert process.poll() is None, "the driver ended before it could be disturbed"
        time.sleep(0.02)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_driver_that_is_stopped_or_killed_is_resumed(cluster: Any, job: Any, tmp_path: Path, number: int) -> None:
    output = tmp_path / "out"
    process = start_driver(cluster, job, output, JOINS="1")
    wait_for_commits(process, output, 3)
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode == (130 if number == signal.SIGTERM else -number)
    partial = sum(record.totals.images for record in read_commits(str(output)))
    assert 0 < partial < SHARDS * IMAGES
    resumed = start_driver(cluster, job, output)
    resumed.communicate(timeout=200)
    assert resumed.returncode == 0
    assert_whole(output)
    assert rows(output) == job[2]


def test_two_drivers_at_once_make_one_dataset(cluster: Any, job: Any, tmp_path: Path) -> None:
    output = tmp_path / "out"
    drivers = [start_driver(cluster, job, output) for _ in range(2)]
    outcomes = [driver.communicate(timeout=250)[0] for driver in drivers]
    assert [driver.returncode for driver in drivers] == [0, 0], outcomes
    assert_whole(output)
    assert rows(output) == job[2]
