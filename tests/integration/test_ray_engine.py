"""The Ray engine on a real cluster: the rows of a local run, whatever dies on the way."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from integration.ray_job import EAT, HANG, SEGFAULT, arm, cluster_config, write_tars
from pipeline.tiny_job import rows
from rich.console import Console

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
    report = generate(tars, str(tmp_path / "out"), cluster_config(folder))
    assert report.exit_code == 0
    assert report.new.images == 24
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
    assert "killed its worker 2 times" in failed.row["error_message"]
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


def test_a_cluster_without_room_for_a_worker_says_what_one_needs(
    connected: Any, undisturbed: tuple[Path, str], tmp_path: Path
) -> None:
    folder, tars = undisturbed
    with pytest.raises(ClusterError, match=r"no node of the cluster has what a worker needs \(1 GPU, 1 CPU\)"):
        generate(tars, str(tmp_path / "out"), cluster_config(folder, "run.ray.gpus_per_worker=1"))


def test_an_unfit_node_is_left_out_and_the_others_do_the_job(
    cluster: Any, undisturbed: tuple[Path, str], tmp_path: Path
) -> None:
    folder, tars = undisturbed
    ray.init(address=cluster.address, log_to_driver=False)
    bad = next(node["NodeID"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU"))
    ray.shutdown()
    runtime_env = {"worker_process_setup_hook": arm, "env_vars": {"BAD_NODE": bad}}
    ray.init(address=cluster.address, log_to_driver=False, runtime_env=runtime_env)
    buffer = io.StringIO()
    try:
        progress = Progress(Console(file=buffer, width=300))
        report = generate(tars, str(tmp_path / "out"), cluster_config(folder), progress=progress)
    finally:
        ray.shutdown()
    assert report.exit_code == 0
    assert "unfit: its disk smells of smoke" in buffer.getvalue()
    assert rows(tmp_path / "out") == rows(folder / "whole")


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
def test_an_image_that_eats_memory_alone_becomes_a_failed_row(
    undisturbed: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray._private.utils import get_system_memory, get_used_memory
    from ray.cluster_utils import Cluster

    folder, _ = undisturbed
    limit = (get_used_memory() + 4e9) / get_system_memory()  # Ray's own monitor kills what goes beyond
    monkeypatch.setenv("RAY_memory_usage_threshold", f"{limit:.3f}")
    monkeypatch.setenv("RAY_memory_monitor_refresh_ms", "100")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    ray.init(address=cluster.address, log_to_driver=False, runtime_env={"worker_process_setup_hook": arm})
    try:
        tars = write_tars(tmp_path / "tars", 2, 6, poison={8: EAT})
        report = generate(tars, str(tmp_path / "out"), cluster_config(folder))
    finally:
        ray.shutdown()
        cluster.shutdown()
    assert report.complete
    assert report.totals.errors == {"worker_died": 1}
    failed = MaskDataset(tmp_path / "out")[_id_of(tmp_path / "out", 8)]
    assert "out of memory" in failed.row["error_message"]
    assert_whole(tmp_path / "out")
