"""Ceph's own S3 gateway: the commit's race, whole jobs, lost answers and a real outage.

apt-get update
tests/integration/rgw_server.sh install ~/rgw
DATA_ENGINE_RGW=~/rgw pytest -m slow tests/integration/test_ceph.py
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import pytest
from integration.fault_proxy import FaultProxy
from integration.ray_job import cluster_config
from integration.test_ray_chaos import worker_pids
from pipeline.tiny_job import KEEP_ALL, config_for, rows, save_model, write_tar

from data_engine.dataset.audit import PlannedCount, audit
from data_engine.dataset.reader import MaskDataset
from data_engine.pipeline.commit import check_store, put_if_absent
from data_engine.pipeline.job import generate
from data_engine.pipeline.plan import read_plan
from data_engine.storage import list_names, read_bytes

s3fs = pytest.importorskip("s3fs")
SERVER = Path(__file__).with_name("rgw_server.sh")
FOLDER = os.environ.get("DATA_ENGINE_RGW")
PER_COMMIT = "output.images_per_commit=2"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(
        FOLDER is None,
        reason="needs Ceph: tests/integration/rgw_server.sh install DIR (Debian 12), then DATA_ENGINE_RGW=DIR",
    ),
]


def server(command: str, *arguments: str) -> str:
    finished = subprocess.run(
        [str(SERVER), command, str(FOLDER), *arguments],
        stdout=subprocess.PIPE,
        text=True,
        timeout=300,
        check=True,
    )
    return finished.stdout


@pytest.fixture(scope="module")
def gateway() -> Iterator[dict[str, str]]:
    """The variables that lead to a gateway of Ceph, started for this file."""
    said = server("start", str(three_free_ports()))
    try:
        yield dict(word.split("=", 1) for word in said.split()[1:])
    finally:
        server("stop")


def three_free_ports() -> int:
    for port in range(19103, 19999, 3):
        free = 0
        for candidate in range(port, port + 3):
            with socket.socket() as probe:
                free += probe.connect_ex(("127.0.0.1", candidate)) != 0
        if free == 3:
            return port
    raise AssertionError("no free ports")


@pytest.fixture
def bucket(gateway: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    for name, value in gateway.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    name = f"bucket-{uuid.uuid4().hex[:12]}"
    fsspec.filesystem("s3").mkdir(name)
    yield f"s3://{name}"
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save_model(tmp_path / "tiny.safetensors")


def assert_whole(output: str) -> None:
    plan = read_plan(output)
    assert plan is not None
    planned = [PlannedCount(shard.id, shard.images) for shard in plan.shards]
    report = audit(MaskDataset(output), planned, plan.fingerprint)
    assert report.findings == []
    assert report.complete


def upload(path: Path, uri: str) -> str:
    fsspec.filesystem("s3").put(str(path), uri)
    return uri


def test_of_sixteen_writers_exactly_one_wins_every_time(bucket):
    for attempt in range(10):
        uri, barrier = f"{bucket}/race-{attempt}", threading.Barrier(16)

        def race(i: int, uri: str = uri, barrier: threading.Barrier = barrier) -> bool:
            barrier.wait()
            return put_if_absent(uri, b"writer %d" % i)

        with ThreadPoolExecutor(16) as pool:
            won = list(pool.map(race, range(16)))
        assert sum(won) == 1
        assert read_bytes(uri) == b"writer %d" % won.index(True)


def test_a_job_from_and_to_it(bucket, model, tmp_path):
    tar = write_tar(tmp_path / "a.tar", 8, broken=(5,))
    check_store(bucket)
    report = generate(upload(tar, f"{bucket}/a.tar"), f"{bucket}/out", config_for(model, PER_COMMIT))
    assert (report.complete, report.exit_code) == (True, 3)
    assert_whole(f"{bucket}/out")
    generate(str(tar), str(tmp_path / "local"), config_for(model, PER_COMMIT))
    (images, masks), (local_images, local_masks) = rows(f"{bucket}/out"), rows(tmp_path / "local")
    assert masks == local_masks
    elsewhere = {"uri": None, "shard": None}
    assert [{**row, **elsewhere} for row in images] == [{**row, **elsewhere} for row in local_images]


def test_lost_answers_and_conflicts_before_it(bucket, model, tmp_path, gateway, monkeypatch):
    source = upload(write_tar(tmp_path / "a.tar", 8), f"{bucket}/a.tar")
    generate(source, f"{bucket}/whole", config_for(model, PER_COMMIT))
    with FaultProxy(gateway["AWS_ENDPOINT_URL"]) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        s3fs.S3FileSystem.clear_instance_cache()
        lost = [proxy.swallow("PUT", name) for name in ("/_plan/job.json", "/_commits/", "/_manifest.json")]
        proxy.answer(409, "ConditionalRequestConflict", "PUT", "/_commits/", times=2)
        proxy.answer(503, "SlowDown", times=None, chance=0.2)
        report = generate(source, f"{bucket}/out", config_for(model, PER_COMMIT))
        assert [rule.met for rule in lost] == [1, 1, 1]
        assert report.new.images == 8
        proxy.clear()
        assert_whole(f"{bucket}/out")
        assert rows(f"{bucket}/out") == rows(f"{bucket}/whole")


def test_twenty_seconds_without_it(bucket, model, tmp_path):
    source = upload(write_tar(tmp_path / "a.tar", 120), f"{bucket}/a.tar")
    overrides = (*KEEP_ALL, PER_COMMIT)
    command = [sys.executable, "-m", "data_engine.cli", "generate", source, f"{bucket}/out", "--config", "reference"]
    command += ["--model", str(model), "--device", "cpu", *(part for o in overrides for part in ("--set", o))]
    job = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        while len(list_names(f"{bucket}/out/_commits")) < 3:
            assert job.poll() is None, "the job ended before the outage"
            time.sleep(0.02)
        server("gateway-stop")
        time.sleep(20)
        assert job.poll() is None, "the job did not wait"
        server("gateway-start")
        _, errors = job.communicate(timeout=300)
    finally:
        job.kill()
    assert job.returncode == 0, errors
    assert_whole(f"{bucket}/out")
    generate(source, f"{bucket}/whole", config_for(model, PER_COMMIT))
    assert rows(f"{bucket}/out") == rows(f"{bucket}/whole")


@pytest.fixture
def nodes(bucket: str) -> Iterator[None]:
    """A driver in a cluster whose nodes find the gateway's credentials in their environment."""
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    for _ in range(2):
        cluster.add_node(num_cpus=1)
    ray.init(address=cluster.address, log_to_driver=False)
    yield
    ray.shutdown()
    cluster.shutdown()


def test_a_ray_cluster_from_and_to_the_gateway_with_a_worker_killed(bucket, nodes, tmp_path):
    for shard in range(4):
        upload(write_tar(tmp_path / "tars" / f"{shard}.tar", 8, first=8 * shard), f"{bucket}/in/{shard}.tar")
    slow = "masks.points_per_side=10"
    generate(f"{bucket}/in/*.tar", str(tmp_path / "whole"), cluster_config(tmp_path, "run.engine=local", slow))

    def kill_one() -> None:
        while len(list_names(f"{bucket}/out/_commits")) < 2:
            time.sleep(0.1)
        os.kill(worker_pids()[0], signal.SIGKILL)

    killer = threading.Thread(target=kill_one)
    killer.start()
    report = generate(f"{bucket}/in/*.tar", f"{bucket}/out", cluster_config(tmp_path, slow))
    killer.join(60)
    assert report.exit_code == 0
    assert_whole(f"{bucket}/out")
    assert rows(f"{bucket}/out") == rows(tmp_path / "whole")
