"""`ray job submit` on a real job server, with its token: the job runs to the end, a second submission adds nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from integration.ray_job import cluster_config, write_tars
from integration.test_ray_engine import assert_whole
from pipeline.tiny_job import KEEP_ALL, rows

from data_engine.pipeline.job import generate

pytest.importorskip("ray")
pytestmark = pytest.mark.timeout(280)
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def job_server() -> Iterator[str]:
    """Address of the dashboard of a one-node cluster."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 2, "include_dashboard": True, "dashboard_host": "127.0.0.1", "dashboard_port": 0},
    )
    yield f"http://{cluster.head_node.address_info['webui_url']}"
    cluster.shutdown()


def submit(address: str, *arguments: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    ray = Path(sys.executable).with_name("ray")
    command = [str(ray), "job", "submit", "--address", address, "--", sys.executable, *arguments]
    return subprocess.run(
        command, env=env or dict(os.environ), capture_output=True, text=True, timeout=200, check=False
    )


def test_a_submitted_job_runs_to_the_end_and_again_adds_nothing(job_server: str, tmp_path: Path) -> None:
    tars = write_tars(tmp_path / "tars", 2, 4)
    output = tmp_path / "out"
    assert generate(tars, str(tmp_path / "whole"), cluster_config(tmp_path, "run.engine=local")).complete
    settings = [*KEEP_ALL, "output.images_per_commit=2", "run.device=cpu", "run.ray.cpus_per_worker=1"]
    arguments: list[Any] = [ROOT / "jobs" / "generate.py", tars, output, "--config", "reference", "--engine", "ray"]
    arguments += ["--model", tmp_path / "tiny.safetensors"]
    arguments += [part for value in settings for part in ("--set", value)]
    for _ in range(2):
        done = submit(job_server, *map(str, arguments))
        assert done.returncode == 0, done.stdout + done.stderr
        assert "8 images" in done.stdout
    assert_whole(output)
    assert rows(output) == rows(tmp_path / "whole")
    audited = submit(job_server, str(ROOT / "jobs" / "audit.py"), str(output))
    assert audited.returncode == 0, audited.stdout + audited.stderr
    assert "audit passed" in audited.stdout


def test_without_the_token_nothing_is_submitted(job_server: str, tmp_path: Path) -> None:
    stranger = {name: value for name, value in os.environ.items() if name != "RAY_AUTH_TOKEN"}
    refused = submit(job_server, "-c", f"open({str(tmp_path / 'ran')!r}, 'w')", env={**stranger, "HOME": str(tmp_path)})
    assert refused.returncode != 0
    assert not (tmp_path / "ran").exists()
