"""Training on a real cluster whose nodes share nothing but a store, and on clusters that are not there."""

from __future__ import annotations

import hashlib
import io
import json
import os
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import psutil
import pytest
import torch
from integration.fault_proxy import FaultProxy
from pipeline.tiny_job import save_model, write_photos
from safetensors.torch import load_file
from train.blobs import settings_for, write_id_maps
from train.labelled_folders import write_id_maps as write_labelled
from train.test_loop_rounds import overrides

from data_engine.errors import ClusterError
from data_engine.loop.run import run_loop
from data_engine.loop.settings import load_loop_settings
from data_engine.stop_signals import Stopped
from data_engine.train.supervised.log_files import parse_lines, read_lines
from data_engine.train.supervised.ray_workers import train_on_ray
from data_engine.train.supervised.settings import TrainingSettings
from data_engine.train.supervised.store_lock import Pulse

ray = pytest.importorskip("ray")
pytestmark = pytest.mark.timeout(280)

QUICK = Pulse(every=0.5, silence=3.0, look=0.1)


@pytest.fixture(scope="module")
def store(s3_endpoint: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultProxy]:
    """The store that the nodes find in their environment, as their folder for temporary files."""
    with pytest.MonkeyPatch.context() as patch, FaultProxy(s3_endpoint) as proxy:
        for name, value in {
            "AWS_ENDPOINT_URL": proxy.url,
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "testing",
            "AWS_DEFAULT_REGION": "us-east-1",
            "OMP_NUM_THREADS": "1",
            "TMPDIR": str(tmp_path_factory.mktemp("tmp")),
            "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]),
        }.items():
            patch.setenv(name, value)
        patch.setattr("data_engine.train.supervised.store_lock.PULSE", QUICK)
        fsspec.filesystem("s3").clear_instance_cache()
        fsspec.filesystem("s3").mkdir("trainings")
        yield proxy
        fsspec.filesystem("s3").clear_instance_cache()


@pytest.fixture(scope="module")
def address(store: FaultProxy) -> Iterator[str]:
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    for _ in range(2):
        cluster.add_node(num_cpus=1)
    yield cluster.address
    cluster.shutdown()


def settings(address: str, **sections: Any) -> TrainingSettings:
    small = {"data": {"jitter": None, "flip": False}, "prompts": {"corrections": 0, "mask_only_rounds": 0}}
    run = {"run": {"ray": {"address": address}, "state_every_steps": 2}}
    train = {"train": {"images_per_batch": 1, "accumulate": 1, "steps": 12}}
    return settings_for(**{**small, **run, **train, **sections})


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = write_id_maps(tmp_path_factory.mktemp("data") / "maps", 6)
    return f"idmaps:{folder / 'images'}@{folder / 'segments'}"


def read(url: str) -> bytes:
    return fsspec.filesystem("s3", use_listings_cache=False).cat_file(url)


def worker_processes() -> list[psutil.Process]:
    found = psutil.Process().children(recursive=True)
    return [process for process in found if "RayTrainWorker" in " ".join(process.cmdline())]


def without_seconds(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


def test_two_workers_that_share_only_a_store_train_one_model(store: FaultProxy, address: str, data: str) -> None:
    url = "s3://trainings/two"
    assert train_on_ray(settings(address, train={"images_per_batch": 1, "steps": 3}), data, url, 2) == (
        f"{url}/model.safetensors"
    )
    assert not ray.is_initialized()
    card = json.loads(read(f"{url}/card.json"))
    assert card["progress"]["images"] == 6
    assert card["weights"]["sha256"] == hashlib.sha256(read(f"{url}/model.safetensors")).hexdigest()
    state = torch.load(io.BytesIO(read(f"{url}/state.pt")), weights_only=True)
    assert len(state["workers"]) == 2
    assert not list(Path(os.environ["TMPDIR"]).glob("data-engine-*"))
    objects = {path.partition("/two/")[2] for path in fsspec.filesystem("s3", use_listings_cache=False).find(url)}
    files = {"README.md", "card.json", "log.jsonl", "model.safetensors", "settings.yaml", "state.pt"}
    assert objects == {*files, "validation.jsonl"}


@pytest.mark.slow
def test_a_signal_to_the_driver_ends_all_workers_after_one_step_and_the_same_command_goes_on(
    store: FaultProxy, address: str, data: str
) -> None:
    url, many = "s3://trainings/asked", settings(address, train={"images_per_batch": 1, "steps": 60})

    def ask() -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    def lines() -> list[dict[str, Any]]:
        return parse_lines(read(f"{url}/log.jsonl").decode())

    store.when("PUT", r"/asked/state\.pt", 1, ask)
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Stopped):
        train_on_ray(many, data, url, 2)
    assert signal.getsignal(signal.SIGTERM) == handler
    state = torch.load(io.BytesIO(read(f"{url}/state.pt")), weights_only=True)
    before = lines()
    assert [worker["progress"]["step"] for worker in state["workers"]] == [len(before)] * 2
    assert 2 <= len(before) < 60
    train_on_ray(many, data, url, 2)
    assert [line["step"] for line in lines()] == list(range(1, 61))
    assert lines()[: len(before)] == before  # none was made twice


@pytest.mark.slow
def test_a_worker_that_is_killed_ends_the_run_and_the_same_command_goes_on(
    store: FaultProxy, address: str, data: str, tmp_path: Path
) -> None:
    whole = train_on_ray(settings(address), data, str(tmp_path / "whole"), 2)
    url = "s3://trainings/killed"

    def kill() -> None:
        worker_processes()[0].send_signal(signal.SIGKILL)

    store.when("PUT", r"/killed/state\.pt", 2, lambda: threading.Thread(target=kill).start())
    with pytest.raises(ClusterError, match=r"a worker failed: .*; the same command goes on from s3://trainings/killed"):
        train_on_ray(settings(address), data, url, 2)
    assert train_on_ray(settings(address), data, url, 2) == f"{url}/model.safetensors"
    lines = parse_lines(read(f"{url}/log.jsonl").decode())
    assert without_seconds(lines) == without_seconds(read_lines(tmp_path / "whole" / "log.jsonl"))
    (tmp_path / "killed.safetensors").write_bytes(read(f"{url}/model.safetensors"))
    killed, unbroken = load_file(tmp_path / "killed.safetensors"), load_file(whole)
    assert all(killed[name].equal(tensor) for name, tensor in unbroken.items())
    assert json.loads(read(f"{url}/card.json"))["progress"]["images"] == 24


@pytest.mark.slow
def test_a_loop_whose_cluster_shares_only_a_store(
    store: FaultProxy, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Masks and trainings by the cluster; photographs and the model to start from lie in the store, too."""
    store.clear()
    monkeypatch.setenv("DATA_ENGINE_CACHE", str(tmp_path / "cache"))
    fs, url = fsspec.filesystem("s3"), "s3://trainings/loop"
    fs.put(str(save_model(tmp_path / "model.safetensors")), "trainings/start/model.safetensors")
    for photo in write_photos(tmp_path / "photos", 3).iterdir():
        fs.put(str(photo), f"trainings/photos/{photo.name}")
    write_labelled(tmp_path / "labelled", 5)
    more = ["rounds=1", "training_workers=2", "model=s3://trainings/start/model.safetensors"]
    more += ["generate.run.engine=ray", f"generate.run.ray.address={address}", f"training.run.ray.address={address}"]
    report = run_loop("s3://trainings/photos", url, load_loop_settings(None, overrides(tmp_path, *more)))
    assert report.exit_code == 0
    assert [row["round"] for row in report.rows] == [0, 1]
    state = torch.load(io.BytesIO(read(f"{url}/round-1/training/state.pt")), weights_only=True)
    assert len(state["workers"]) == 2
    assert json.loads(read(f"{url}/rounds.json"))["rows"] == report.rows


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_a_cluster_that_does_not_answer_is_said(scheme: str, data: str, tmp_path: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"{scheme}127.0.0.1:{unused.getsockname()[1]}"
    with pytest.raises(ClusterError, match=rf"the Ray cluster {address} cannot be used .* or set run\.ray\.address"):
        train_on_ray(settings(address), data, str(tmp_path / "run"), 2)
