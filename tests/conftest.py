"""What every room's tests share: one thread a model, a real S3 server, a real Ray cluster."""

from __future__ import annotations

import os
import secrets
import signal
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from planted_secret import SECRET

# No test is about speed: on a busy machine an example may take its time.
settings.register_profile("suite", deadline=None)
settings.load_profile("suite")

# Before torch is imported, and for child processes too: models this small are faster on one thread, and many times so
# on a busy machine, where threads that wait for each other wait for the scheduler.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Ray reads these when it is imported. Its token authentication stays on, as it should everywhere.
os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32))

# A shell in the background ignores Ctrl-C, nohup a terminal's end, and so would every process that a test starts; what
# is handled here, they begin with as the system has it.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
    signal.signal(signal.SIGHUP, lambda *_: None)


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """A real S3 server over HTTP on this machine."""
    pytest.importorskip("s3fs")
    server_module = pytest.importorskip("moto.server")
    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """s3://<a new bucket>, reachable with what the environment says, also from child processes."""
    import fsspec
    import s3fs

    for name, value in {
        "AWS_ENDPOINT_URL": s3_endpoint,
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    fs = fsspec.filesystem("s3", endpoint_url=os.environ["AWS_ENDPOINT_URL"])
    name = f"bucket-{uuid.uuid4().hex[:12]}"
    fs.mkdir(name)
    yield f"s3://{name}"
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head without CPUs and two nodes of one CPU."""
    pytest.importorskip("ray")
    os.environ["PYTHONPATH"] = str(Path(__file__).parent)  # worker processes import their poison from here
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
