"""The Ray engine on a real cluster: the rows of a local run, whatever dies on the way."""

from __future__ import annotations

import io
import os
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from integration.ray_job import EAT, HANG, SEGFAULT, arm, cluster_config, write_tars
from pipeline.tiny_job import rows
from rich.console import Console

from data_engine.config import JobConfig
from data_engine.dataset.audit import PlannedCount, audit
from data_engine.dataset.reader import MaskDataset
from data_engine.errors import ClusterError
from data_engine.pipeline.job import JobReport, generate
from data_engine.pipeline.plan import read_plan
from data_engine.pipeline.progress import Progress

ray = pytest.importorskip("ray")
pytestmark = pytest.mark.timeout(240)


def assert_whole(output: Path | str) -> None:
    plan = read_plan(str(output))
    assert plan is not None
    planned = [PlannedCount(shard.id, shard.images) for shard in plan.shards]
    report = audit(MaskDataset(output), planned, plan.fingerprint)
    assert report.findings == []
    assert report.complete


@contextmanager
def armed(cluster: Any, **environment: str) -> Iterator[None]:
    """This process as a driver in the cluster, whose workers do what `arm` makes of their environment."""
    runtime_env = {"worker_process_setup_hook": arm, "env_vars": environment}
    ray.init(address=cluster.address, log_to_driver=False, runtime_env=runtime_env)
    try:
        yield
    finally:
        ray.shutdown()


def generate_aloud(tars: str, output: Path, config: JobConfig) -> tuple[JobReport, str]:
    """The report, and what was said meanwhile."""
    said = io.StringIO()
    report = generate(tars, str(output), config, progress=Progress(Console(file=said, width=500)))
    return report, said.getvalue()


def without(output: Path, *image_ids: str) -> tuple[list[dict], list[dict]]:
    images, masks = rows(output)
    return [r for r in images if r["image_id"] not in image_ids], [r for r in masks if r["image_id"] not in image_ids]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A folder with the model and a dataset of a local run over four tars of six images."""
    folder = tmp_path_factory.mktemp("undisturbed")
    tars = write_tars(folder / "tars", 4, 6)
    report = generate(tars, str(folder / "whole"), cluster_config(folder, "run.engine=local"))
    assert report.complete
    return folder, tars


def test_rows_equal_a_local_runs(connected: Any, undisturbed: tuple[Path, str], tmp_path: Path) -> None:
    folder, tars = undisturbed
    report, said = generate_aloud(tars, tmp_path / "out", cluster_config(folder))
    assert report.exit_code == 0
    assert report.new.images == 24
    assert "warning" not in said  # the CPU was asked for
    assert_whole(tmp_path / "out")
    assert rows(tmp_path / "out") == rows(folder / "whole")
    assert list((tmp_path / "out" / "_runs").glob("*/metrics.jsonl"))


@pytest.mark.parametrize(("poison", "settings"), [(SEGFAULT, ()), (HANG, ("run.ray.image_timeout=4",))])
def test_an_image_that_kills_or_hangs_its_workers_alone_becomes_a_failed_row(
    connected: Any, undisturbed: tuple[Path, str], tmp_path: Path, poison: bytes, settings: tuple[str, ...]
) -> None:
    folder, _ = undisturbed
    tars = write_tars(tmp_path / "tars", 4, 6, poison={8: poison})
    report: JobReport = generate(tars, str(tmp_path / "out"), cluster_config(folder, *settings))
    assert report.complete
    assert report.totals.errors == {"worker_died": 1}
    failed = MaskDataset(tmp_path / "out")[_id_of(tmp_path / "out", 8)]
    assert failed.row["status"] == "failed"
    # Twice, or once more where the second node was slow to come up.
    assert re.match(r"it killed its worker [23] times", failed.row["error_message"])
    assert_whole(tmp_path / "out")
    assert len(rows(tmp_path / "out")[0]) == 24


def _id_of(output: Path, number: int) -> str:
    return next(r["image_id"] for r in rows(output)[0] if f"{number:05d}" in r["image_id"])


def test_a_cluster_on_which_no_node_is_fit_says_why(
    connected: Any, undisturbed: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, tars = undisturbed
    monkeypatch.setattr(torch, "__version__", "9.9.9")
    with pytest.raises(ClusterError, match=r"torch .* is installed on the node, the driver has 9\.9\.9"):
        generate(tars, str(tmp_path / "out"), cluster_config(folder))
    monkeypatch.undo()
    assert generate(tars, str(tmp_path / "out"), cluster_config(folder)).complete


def test_that_workers_will_use_cpus_is_said_where_nobody_asked_for_them(
    connected: Any, undisturbed: tuple[Path, str], tmp_path: Path
) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    folder, tars = undisturbed
    _, said = generate_aloud(tars, tmp_path / "out", cluster_config(folder, "run.device=auto", "run.ray.workers=2"))
    assert "workers will use CPUs; set run.ray.gpus_per_worker=1 to wait for GPU nodes" in said
    assert rows(tmp_path / "out") == rows(folder / "whole")


def test_a_cluster_without_room_for_a_worker_says_what_one_needs(
    connected: Any, undisturbed: tuple[Path, str], tmp_path: Path
) -> None:
    folder, tars = undisturbed
    with pytest.raises(ClusterError, match=r"no node of the cluster has what a worker needs \(1 GPU, 1 CPU\)"):
        generate(tars, str(tmp_path / "out"), cluster_config(folder, "run.ray.gpus_per_worker=1"))


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("BAD_NODE", "unfit: its disk smells of smoke"),
        ("EMPTY_NODE", r"No module named 'data_engine'\): install data-engine\[ray\] \S+ there"),
    ],
)
def test_an_unfit_node_is_left_out_and_the_others_do_the_job(
    cluster: Any, undisturbed: tuple[Path, str], tmp_path: Path, how: str, reason: str
) -> None:
    folder, tars = undisturbed
    with armed(cluster):
        bad = next(node["NodeID"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU"))
    with armed(cluster, **{how: bad}):
        report, said = generate_aloud(tars, tmp_path / "out", cluster_config(folder))
    assert report.exit_code == 0
    assert len(re.findall(reason, said)) == 1, said  # and no worker was tried there again
    assert rows(tmp_path / "out") == rows(folder / "whole")


def test_workers_that_find_no_place_are_asked_for_anew_and_that_is_said(
    connected: Any, undisturbed: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, tars = undisturbed
    note, notes = Progress.note, []

    def noted(self: Progress, text: str) -> None:
        note(self, text)
        if "no place or no process in 1 s" in text:
            notes.append(text)
            if len(notes) == 2:
                os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Progress, "note", noted)
    settings = ("run.ray.gpus_per_worker=1", "run.ray.workers=2", "run.ray.start_timeout=1")  # there are no GPUs
    report, said = generate_aloud(tars, tmp_path / "out", cluster_config(folder, *settings))
    assert report.exit_code == 130
    assert "2 workers have found no place" in said
    assert "w0" not in said  # none of them is lost


@pytest.mark.slow
def test_a_worker_that_freezes_before_it_speaks_is_replaced(
    cluster: Any, undisturbed: tuple[Path, str], tmp_path: Path
) -> None:
    folder, tars = undisturbed
    (tmp_path / "frozen").mkdir()
    for number in range(2):  # one on each node: nobody else would do the job
        (tmp_path / "frozen" / str(number)).touch()
    with armed(cluster, FROZEN_STARTS=str(tmp_path / "frozen")):
        report, said = generate_aloud(tars, tmp_path / "out", cluster_config(folder, "run.ray.start_timeout=60"))
    assert report.exit_code == 0
    assert len(re.findall(r"timed out: its process was started and has not spoken for 60 s", said)) == 2, said
    assert rows(tmp_path / "out") == rows(folder / "whole")


def test_workers_that_all_freeze_before_they_speak_end_the_job_with_the_reason(
    cluster: Any, undisturbed: tuple[Path, str], tmp_path: Path
) -> None:
    folder, tars = undisturbed
    (tmp_path / "frozen").mkdir()
    for number in range(100):
        (tmp_path / "frozen" / str(number)).touch()
    reason = r"5 workers in a row were lost.*: its process was started and has not spoken for 1 s \(5x\)"
    with armed(cluster, FROZEN_STARTS=str(tmp_path / "frozen")), pytest.raises(ClusterError, match=reason):
        generate(tars, str(tmp_path / "out"), cluster_config(folder, "run.ray.start_timeout=1"))


def test_a_cluster_without_the_package_says_what_to_install(
    cluster: Any, undisturbed: tuple[Path, str], tmp_path: Path
) -> None:
    folder, tars = undisturbed
    with armed(cluster, EMPTY_NODE="all"), pytest.raises(ClusterError, match=r"install data-engine\[ray\]"):
        generate(tars, str(tmp_path / "out"), cluster_config(folder))


def test_an_output_that_runs_full_ends_the_job_with_the_remedy_and_it_goes_on_later(
    cluster: Any, undisturbed: tuple[Path, str], tmp_path: Path
) -> None:
    folder, tars = undisturbed
    flag, output = tmp_path / "full", tmp_path / "out"
    flag.touch()
    with armed(cluster, FULL_DISK=str(flag)):
        with pytest.raises(ClusterError, match=r"no space left on the device \(.* bytes free\); free some") as refused:
            generate(tars, str(output), cluster_config(folder))
        assert "\n" not in str(refused.value)
        assert list(output.rglob("*.tmp")) == []
        flag.unlink()
        report = generate(tars, str(output), cluster_config(folder))
    assert report.exit_code == 0
    assert_whole(output)
    assert rows(output) == rows(folder / "whole")


def test_an_address_where_no_cluster_is_is_one_clear_error(undisturbed: tuple[Path, str], tmp_path: Path) -> None:
    folder, tars = undisturbed
    with pytest.raises(ClusterError, match=r"127\.0\.0\.1:1 cannot be used"):
        generate(tars, str(tmp_path / "out"), cluster_config(folder, "run.ray.address=127.0.0.1:1"))


def test_a_node_whose_gpu_torch_cannot_see_is_unfit(
    connected: Any, undisturbed: tuple[Path, str], tmp_path: Path
) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    folder, tars = undisturbed
    node = connected.add_node(num_cpus=1, num_gpus=1)
    try:
        with pytest.raises(ClusterError, match="no GPU is visible to torch on the node"):
            generate(tars, str(tmp_path / "out"), cluster_config(folder, "run.ray.gpus_per_worker=1"))
    finally:
        connected.remove_node(node)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_an_image_that_eats_memory_alone_becomes_a_failed_row(
    undisturbed: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    """Beside others too: Ray kills whom it likes, and a neighbour's image is not blamed for it."""
    from ray._private.utils import get_system_memory, get_used_memory
    from ray.cluster_utils import Cluster

    folder, _ = undisturbed
    limit = (get_used_memory() + 4e9) / get_system_memory()  # Ray's own monitor kills what goes beyond
    monkeypatch.setenv("RAY_memory_usage_threshold", f"{limit:.3f}")
    monkeypatch.setenv("RAY_memory_monitor_refresh_ms", "100")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": workers, "include_dashboard": False})
    try:
        with armed(cluster):
            tars = write_tars(tmp_path / "tars", 2 * workers, 6, poison={8: EAT})
            report, said = generate_aloud(tars, tmp_path / "out", cluster_config(folder))
    finally:
        cluster.shutdown()
    assert "out of memory: the node ran out" in said
    assert report.complete
    assert report.totals.errors == {"worker_died": 1}
    failed = MaskDataset(tmp_path / "out")[_id_of(tmp_path / "out", 8)]
    assert "out of memory" in failed.row["error_message"]
    assert_whole(tmp_path / "out")
