"""Into a cluster and out of it, with Ray's own part played: no cluster is started."""

from __future__ import annotations

import signal
import sys

import pytest

pytest.importorskip("ray")

from data_engine.errors import ClusterError
from data_engine.pipeline import ray_connection
from data_engine.pipeline.ray_connection import connected


class PlayedRay:
    """As ray.init, which takes SIGTERM for itself, so that the driver would end in the middle of everything."""

    def __init__(self, fails: bool = False) -> None:
        self.fails = fails

    def is_initialized(self) -> bool:
        return False

    def init(self, **_: object) -> None:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(signal.SIGTERM))
        if self.fails:
            raise ConnectionError("nobody is there")

    def shutdown(self) -> None:
        pass


@pytest.fixture
def handler():
    def stop(*_: object) -> None: ...

    before = signal.signal(signal.SIGTERM, stop)
    yield stop
    signal.signal(signal.SIGTERM, before)


def test_a_job_that_listens_to_sigterm_still_does_in_a_cluster(handler, monkeypatch):
    monkeypatch.setattr(ray_connection, "ray", PlayedRay())
    with connected(None):
        assert signal.getsignal(signal.SIGTERM) is handler
    assert signal.getsignal(signal.SIGTERM) is handler


def test_and_after_a_cluster_that_could_not_be_joined(handler, monkeypatch):
    monkeypatch.setattr(ray_connection, "ray", PlayedRay(fails=True))
    with pytest.raises(ClusterError, match="nobody is there"), connected(None):
        pass
    assert signal.getsignal(signal.SIGTERM) is handler


def test_where_nobody_listens_ray_may_clean_up(handler, monkeypatch):
    monkeypatch.setattr(ray_connection, "ray", PlayedRay())
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with connected(None):
        assert callable(signal.getsignal(signal.SIGTERM))
