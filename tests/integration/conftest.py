"""A real Ray cluster of several nodes on this machine, with token authentication as it should be."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head without CPUs and two nodes of one CPU."""
    pytest.importorskip("ray")
    os.environ["PYTHONPATH"] = str(Path(__file__).parents[1])  # worker processes import their poison from here
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    for _ in range(2):
        cluster.add_node(num_cpus=1)
    yield cluster
    cluster.shutdown()


@pytest.fixture
def connected(cluster: Any) -> Iterator[Any]:
    """This process as a driver in the cluster, whose workers obey poisoned images."""
    import ray
    from integration.ray_job import arm

    ray.init(address=cluster.address, log_to_driver=False, runtime_env={"worker_process_setup_hook": arm})
    yield cluster
    ray.shutdown()
