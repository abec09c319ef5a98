"""The main job at scale in small: from and to object storage on a Ray cluster, with workers and the store failing."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from integration.fault_proxy import FaultProxy
from integration.ray_job import cluster_config, write_tars
from integration.test_ray_chaos import worker_pids
from integration.test_ray_engine import armed, assert_whole, generate_aloud
from pipeline.tiny_job import rows
from planted_secret import SECRET

from data_engine.errors import ClusterError
from data_engine.pipeline import ray_cluster
from data_engine.pipeline.job import generate
from data_engine.pipeline.policy import Policy

ray = pytest.importorskip("ray")
s3fs = pytest.importorskip("s3fs")
pytestmark = pytest.mark.timeout(280)

SHARDS, IMAGES = 4, 8
SLOW = "masks.points_per_side=10"
INPUT = "s3://cluster-job/in/*.tar"


@dataclass(frozen=True)
class Store:
    """A bucket behind a proxy that does as it is told, the nodes that use it, and what an undisturbed run makes."""

    proxy: FaultProxy
    fs: Any
    cluster: Any
    folder: Path
    expected: tuple[list[dict], list[dict]]

    def assert_undisturbed(self, output: str) -> None:
        self.proxy.clear()
        assert_whole(output)
        images, masks = rows(output)
        assert masks == self.expected[1]
        assert without_place(images) == without_place(self.expected[0])


def without_place(images: list[dict]) -> list[dict]:
    return [{key: value for key, value in row.items() if key not in ("uri", "shard")} for row in images]


@pytest.fixture(scope="module")
def _store(s3_endpoint: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    from ray.cluster_utils import Cluster

    folder = tmp_path_factory.mktemp("store")
    tars = write_tars(folder / "tars", SHARDS, IMAGES)
    generate(tars, str(folder / "whole"), cluster_config(folder, "run.engine=local", SLOW))
    with pytest.MonkeyPatch.context() as patch, FaultProxy(s3_endpoint) as proxy:
        # The nodes find the credentials in their environment.
        patch.setenv("AWS_ENDPOINT_URL", proxy.url)
        patch.setenv("AWS_ACCESS_KEY_ID", "testing")
        patch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
        s3fs.S3FileSystem.clear_instance_cache()
        fs = s3fs.S3FileSystem(use_listings_cache=False)
        fs.mkdir("cluster-job")
        fs.put(str(folder / "tars"), "cluster-job/in", recursive=True)
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        for _ in range(2):
            cluster.add_node(num_cpus=1)
        yield Store(proxy, fs, cluster, folder, rows(folder / "whole"))
        cluster.shutdown()
        s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def store(_store: Store) -> Iterator[Store]:
    _store.proxy.clear()
    yield _store
    _store.proxy.clear()
    _store.proxy.up()


@contextmanager
def meanwhile(store: Store, requests: int, what: Callable[[], object]) -> Iterator[None]:
    """Does it in a thread of its own as soon as so many records were to be written."""
    thread = threading.Thread(target=what)
    store.proxy.when("PUT", "/_commits/", requests, thread.start)
    yield
    thread.join(60)
    assert not thread.is_alive()


def test_from_and_to_s3_with_a_worker_killed_and_no_secret_left_anywhere(store: Store) -> None:
    output = "s3://cluster-job/killed"
    with armed(store.cluster), meanwhile(store, 3, lambda: os.kill(worker_pids()[0], signal.SIGKILL)):
        report = generate(INPUT, output, cluster_config(store.folder, SLOW))
    assert report.exit_code == 0
    store.assert_undisturbed(output)
    objects = store.fs.find("cluster-job/killed")
    assert any("/_runs/" in name for name in objects)
    assert not [name for name in objects if SECRET.encode() in store.fs.cat(name)]


def test_a_store_that_has_a_bad_day_and_goes_away_for_a_while_changes_nothing(store: Store) -> None:
    proxy, output = store.proxy, "s3://cluster-job/bad-day"
    proxy.answer(503, "SlowDown", times=None, chance=0.1)
    proxy.answer(500, "InternalError", times=None, chance=0.05)
    rules = [
        proxy.answer(409, "ConditionalRequestConflict", "PUT", "/bad-day/_commits/", times=2),
        proxy.truncate("GET", r"/in/00\d\.tar", times=4),
        proxy.swallow("PUT", "/bad-day/_commits/", times=2),
        proxy.swallow("PUT", "/bad-day/(images|masks)/", times=2),
    ]
    with armed(store.cluster), meanwhile(store, 6, lambda: proxy.outage(20)):
        report, said = generate_aloud(INPUT, output, cluster_config(store.folder, SLOW, "run.ray.speculate=false"))
    assert [rule for rule in rules if not rule.met] == [], "a fault never happened"
    assert proxy.faults["503"] > 0
    assert proxy.faults["500"] > 0
    assert proxy.faults["outage"] == 1
    assert report.exit_code == 0
    assert report.new.images == SHARDS * IMAGES  # no slice of ours was taken for another's
    assert "waiting for the store" not in said  # the workers were patient enough
    store.assert_undisturbed(output)


def test_an_outage_that_outlasts_the_workers_is_no_shards_failure(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Workers wait 2 s instead of two minutes; a shard may fail once, as one does whose input is just being read."""
    proxy, output = store.proxy, "s3://cluster-job/outage"
    hurried(monkeypatch, store_pause=1.0, store_longest_pause=4.0)
    config = cluster_config(store.folder, SLOW, "run.ray.shard_retries=1")
    with armed(store.cluster, STORE_PATIENCE="2"), meanwhile(store, 4, lambda: proxy.outage(15)):
        report, said = generate_aloud(INPUT, output, config)
    assert report.exit_code == 0, said
    assert said.count("waiting for the store, at no shard's expense: s3://cluster-job/") == 1, said
    assert said.count("the store answers again, after ") == 1, said
    assert "store away" in said
    store.assert_undisturbed(output)


@pytest.mark.slow
def test_a_store_that_stays_away_ends_the_job_and_the_same_command_goes_on(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy, output = store.proxy, "s3://cluster-job/gone"
    hurried(monkeypatch, store_pause=1.0, store_longest_pause=1.0, store_patience=3.0)
    config = cluster_config(store.folder, SLOW)
    with armed(store.cluster, STORE_PATIENCE="1"):
        with (
            meanwhile(store, 4, proxy.down),
            pytest.raises(ClusterError, match=r"the store has taken nothing for 0 minutes: s3://cluster-job/"),
        ):
            generate(INPUT, output, config)
        proxy.up()
        report = generate(INPUT, output, config)
    assert report.exit_code == 0
    assert 0 < report.new.images < SHARDS * IMAGES
    store.assert_undisturbed(output)


def hurried(monkeypatch: pytest.MonkeyPatch, **changes: float) -> None:
    """The driver's times of waiting for a store, made short."""
    real = ray_cluster._policy

    def policy(job: Any) -> Policy:
        return replace(real(job), **changes)  # type: ignore[arg-type]

    monkeypatch.setattr(ray_cluster, "_policy", policy)
