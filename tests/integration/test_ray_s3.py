"""The main job at scale in small: from and to object storage on a Ray cluster, with workers and the store failing."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from integration.ray_job import cluster_config, write_tars
from integration.test_ray_chaos import worker_pids
from integration.test_ray_engine import assert_whole
from pipeline.tiny_job import rows
from planted_secret import SECRET

from data_engine.pipeline.job import generate

ray = pytest.importorskip("ray")
s3fs = pytest.importorskip("s3fs")
pytestmark = pytest.mark.timeout(280)


@pytest.fixture(scope="module")
def store(s3_endpoint: str) -> Iterator[Any]:
    """A bucket, and a driver in a cluster whose nodes find the credentials in their environment."""
    from ray.cluster_utils import Cluster

    keys = {
        "AWS_ENDPOINT_URL": s3_endpoint,
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    before = {name: os.environ.get(name) for name in keys}
    os.environ.update(keys)
    s3fs.S3FileSystem.clear_instance_cache()
    fs = s3fs.S3FileSystem(endpoint_url=s3_endpoint)
    fs.mkdir("cluster-job")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    for _ in range(2):
        cluster.add_node(num_cpus=1)
    ray.init(address=cluster.address, log_to_driver=False)
    yield fs
    ray.shutdown()
    cluster.shutdown()
    for name, value in before.items():
        if value is None:
            os.environ.pop(name)
        else:
            os.environ[name] = value
    s3fs.S3FileSystem.clear_instance_cache()


def test_from_and_to_s3_with_a_worker_killed_and_no_secret_left_anywhere(store: Any, tmp_path: Path) -> None:
    tars = write_tars(tmp_path / "tars", 4, 8)
    store.put(str(tmp_path / "tars"), "cluster-job/in", recursive=True)
    slow = "masks.points_per_side=10"
    generate(tars, str(tmp_path / "whole"), cluster_config(tmp_path, "run.engine=local", slow))

    def commits() -> int:
        store.invalidate_cache()
        return len(store.find("cluster-job/out/_commits"))

    def kill_one() -> None:
        while commits() < 2:
            time.sleep(0.1)
        os.kill(worker_pids()[0], signal.SIGKILL)

    killer = threading.Thread(target=kill_one)
    killer.start()
    report = generate("s3://cluster-job/in/*.tar", "s3://cluster-job/out", cluster_config(tmp_path, slow))
    killer.join(60)
    assert report.exit_code == 0
    assert_whole("s3://cluster-job/out")
    images, masks = rows("s3://cluster-job/out")
    expected_images, expected_masks = rows(tmp_path / "whole")
    assert masks == expected_masks
    where_from = ("uri", "shard")
    assert [{k: v for k, v in row.items() if k not in where_from} for row in images] == [
        {k: v for k, v in row.items() if k not in where_from} for row in expected_images
    ]
    store.invalidate_cache()
    objects = store.find("cluster-job/out")
    assert any("/_runs/" in name for name in objects)
    assert not [name for name in objects if SECRET.encode() in store.cat(name)]
