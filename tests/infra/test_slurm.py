"""The batch script of Slurm, run with stand-ins for Slurm, Ray and the command: what it starts, stops and requeues."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from infra_files import INFRA

SCRIPT = INFRA / "slurm" / "data-engine.sbatch"
STAND_INS = {
    # runs the command behind its own options, as srun does on each node
    "srun": 'echo "$@" >"$STATE/srun"; while [ "$1" != ray ]; do shift; done; "$@"; exit "${OTHER_NODE:-$?}"',
    # runs what stands behind --, as symmetric-run does on the head; where Ray does not start there, its exit code is 0
    "ray": 'echo "$@" >"$STATE/ray"; [ -z "${NO_RAY:-}" ] || exit 0; while [ "$1" != -- ]; do shift; done; shift; "$@"',
    "scontrol": 'echo "$@" >>"$STATE/scontrol"',
    "data-engine": 'printf "%s\\n" "$@" >"$STATE/arguments"; env >"$STATE/environment"\n'
    'stat -c %a "$RAY_AUTH_TOKEN_PATH" >"$STATE/token_mode"; cat "$RAY_AUTH_TOKEN_PATH" >"$STATE/token"\n'
    '[ -z "${LINGER:-}" ] && exit "${CODE:-0}"\n'
    'trap "exit 130" TERM; touch "$STATE/started"; while true; do sleep 0.1; done',
}


@pytest.fixture
def cluster(tmp_path: Path) -> dict[str, str]:
    """The environment of a batch job on a cluster that these stand-ins make."""
    programs, state, home = tmp_path / "bin", tmp_path / "state", tmp_path / "home"
    for folder in (programs, state, home):
        folder.mkdir()
    for name, body in STAND_INS.items():
        (programs / name).write_text(f"#!/bin/bash\n{body}\n")
        (programs / name).chmod(0o755)
    return {
        "PATH": f"{programs}:{os.environ['PATH']}",
        "HOME": str(home),
        "TMPDIR": str(tmp_path),
        "STATE": str(state),
        "HEAD_IP": "10.0.0.1",
        "SLURMD_NODENAME": "node1",
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_NODELIST": "node[1-4]",
        "SLURM_JOB_NUM_NODES": "4",
        "SLURM_CPUS_ON_NODE": "32",
    }


def run(cluster: dict[str, str], *arguments: str) -> int:
    return subprocess.run(["bash", str(SCRIPT), *arguments], env=cluster, check=False, timeout=60).returncode


def read(cluster: dict[str, str], name: str) -> str:
    return Path(cluster["STATE"], name).read_text()


def test_the_job_runs_with_its_arguments_on_the_cluster_it_made(cluster: dict[str, str]) -> None:
    assert run(cluster, "s3://in/a b", "s3://out", "--set", "run.ray.workers=8") == 0
    given = ["generate", "s3://in/a b", "s3://out", "--set", "run.ray.workers=8", "--engine", "ray"]
    assert read(cluster, "arguments").splitlines() == given
    environment = read(cluster, "environment").splitlines()
    assert "RAY_ADDRESS=10.0.0.1:6379" in environment
    assert "RAY_AUTH_MODE=token" in environment
    assert "RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT=600" in environment
    assert f"RAY_TMPDIR=/tmp/ray-{os.getuid()}" in environment
    assert read(cluster, "ray").startswith("symmetric-run --address 10.0.0.1:6379 --min-nodes 1 --num-cpus 32 -- ")
    assert "--nodes=4" in read(cluster, "srun")


def test_the_token_is_the_owners_and_goes_with_the_job(cluster: dict[str, str]) -> None:
    run(cluster, "in", "out")
    first = read(cluster, "token")
    assert read(cluster, "token_mode").strip() == "600"
    assert len(first) == 64
    assert list(Path(cluster["HOME"], ".ray").iterdir()) == []
    run(cluster, "in", "out")
    assert read(cluster, "token") != first


def test_a_node_waits_for_the_head_as_long_as_it_is_told(cluster: dict[str, str]) -> None:
    """symmetric-run gives up with the first try to connect, for which Ray has a time of its own: 30 s."""
    pytest.importorskip("ray")
    assert run({**cluster, "RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT": "77"}, "in", "out") == 0
    told = dict(line.split("=", 1) for line in read(cluster, "environment").splitlines() if "=" in line)
    ask = [sys.executable, "-c", "from ray._raylet import Config; print(Config.py_gcs_connect_timeout_s())"]
    known = subprocess.run(ask, env={**os.environ, **told}, check=True, capture_output=True, text=True, timeout=60)
    assert known.stdout.split() == ["77"]


@pytest.mark.parametrize("code", [0, 3])
def test_a_node_that_fails_does_not_change_the_exit_code(cluster: dict[str, str], code: int) -> None:
    assert run({**cluster, "CODE": str(code), "OTHER_NODE": "1"}, "in", "out") == code


def test_a_head_without_ray_fails_the_job(cluster: dict[str, str]) -> None:
    assert run({**cluster, "NO_RAY": "1"}, "in", "out") == 1
    assert not Path(cluster["STATE"], "scontrol").exists()


@pytest.mark.parametrize("code", [1, 2, 3])
def test_an_end_that_a_second_run_would_not_change_is_not_requeued(cluster: dict[str, str], code: int) -> None:
    assert run({**cluster, "CODE": str(code)}, "in", "out") == code
    assert not Path(cluster["STATE"], "scontrol").exists()


def test_out_of_time_stops_the_driver_and_requeues(cluster: dict[str, str]) -> None:
    job = subprocess.Popen(["bash", str(SCRIPT), "in", "out"], env={**cluster, "LINGER": "1"}, start_new_session=True)
    try:
        end = time.monotonic() + 30
        while not Path(cluster["STATE"], "started").exists():
            assert time.monotonic() < end
            time.sleep(0.05)
        job.send_signal(signal.SIGUSR1)
        assert job.wait(timeout=30) == 130
    finally:
        if job.poll() is None:
            os.killpg(job.pid, signal.SIGKILL)
    assert read(cluster, "scontrol").strip() == "requeue 7"


def test_missing_arguments_are_said(cluster: dict[str, str]) -> None:
    assert run(cluster, "in") == 2


def test_slurm_is_told_what_the_readme_promises() -> None:
    directives = {line.split()[1] for line in SCRIPT.read_text().splitlines() if line.startswith("#SBATCH")}
    assert {"--requeue", "--no-kill", "--exclusive", "--ntasks-per-node=1", "--signal=B:USR1@300"} <= directives


def test_the_script_is_sound() -> None:
    subprocess.run(["bash", "-n", str(SCRIPT)], check=True)
    assert SCRIPT.stat().st_mode & stat.S_IRUSR
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed")
    subprocess.run(["shellcheck", str(SCRIPT)], check=True)
