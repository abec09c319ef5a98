"""Several workers on one training, through Ray Train: it sets up their process group, `workers.Together` uses it.

Each worker has a model of its own and reads its share of the data; gradients are averaged at each step.
"""

from __future__ import annotations

import logging
import platform
import re
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from data_engine.errors import ClusterError, DataEngineError, UsageError
from data_engine.stop_signals import Stopped, stop_signals
from data_engine.storage import is_local, join, list_names, redact
from data_engine.train.supervised.card import CARD, WEIGHTS
from data_engine.train.supervised.outputs import train_into
from data_engine.train.supervised.ray_stop import BellHeard, new_bell
from data_engine.train.supervised.run import open_sources, output_folder
from data_engine.train.supervised.settings import TrainingSettings
from data_engine.train.supervised.store_lock import only_writer_anywhere
from data_engine.train.supervised.workers import Together

logger = logging.getLogger(__name__)

_LOOK_S = 0.2  # for a signal, between two looks at the workers


def train_on_ray(settings: TrainingSettings, data: str, output: str, workers: int) -> str:
    """Trains with `workers` workers, on GPUs if the cluster has as many, else on CPUs.

    `output`, a folder or a URL, and the data must be reachable from every node. A worker that dies ends the run; the
    same command goes on. Returns the path or URL of the weights.
    SIGINT, SIGTERM and SIGHUP end it as in `run.train`: Stopped is raised when all workers have ended after one step.
    Raises UsageError, and ClusterError for a cluster that cannot be joined, or with the cause for a worker that failed.
    """
    try:
        from ray.train import RunConfig, ScalingConfig
        from ray.train.torch import TorchConfig, TorchTrainer
    except ImportError:
        raise UsageError("--workers needs Ray: pip install 'data-engine[ray]'") from None
    from data_engine.pipeline.ray_connection import connected

    if is_local(output):
        output = str(output_folder(output).absolute())
    # What is wrong is said here, not by a worker; worker 0 has the lock while it trains.
    with only_writer_anywhere(output):
        open_sources(data, settings)
    with connected(settings.run.ray.address, log_to_driver=True), _rays_own(output) as own:
        gpus = _on_gpus(settings.run.device, _gpus(), workers)
        bell = new_bell()
        config = {"settings": settings.model_dump(mode="json"), "data": data, "output": output, "bell": bell}
        trainer = TorchTrainer(
            _work,
            train_loop_config=config,
            torch_config=TorchConfig(backend="nccl" if gpus else "gloo"),
            scaling_config=ScalingConfig(num_workers=workers, use_gpu=gpus),
            run_config=RunConfig(name="train", storage_path=own),
        )
        try:
            asked = _fit(trainer, bell)
        except DataEngineError:
            raise
        except Exception as error:  # Ray wraps what a worker raised in types that differ from version to version
            raise ClusterError(
                f"a worker failed: {_cause(error)}; the same command goes on from {redact(output)}"
            ) from error
    if asked and CARD not in list_names(output):
        raise Stopped
    return join(output, WEIGHTS)


def _fit(trainer: Any, bell: Any) -> bool:
    """Waits for the workers, and has them end when a signal comes: True. Raises what `fit` raises.

    In a thread of its own, as in the main one Ray takes Ctrl-C for itself and kills the workers.
    """
    ended: Future[None] = Future()

    def fit() -> None:
        try:
            trainer.fit()
            ended.set_result(None)
        except BaseException as error:
            ended.set_exception(error)

    with stop_signals(logger.warning) as stop, stop.gently():
        threading.Thread(target=fit, name="ray-train", daemon=True).start()
        while not (stop.asked() or wait([ended], _LOOK_S).done):
            pass
        if stop.asked():
            bell.ring.remote()
        ended.result()
        return stop.asked()


@contextmanager
def _rays_own(output: str) -> Iterator[str]:
    """Where Ray keeps what it knows of a run: its driver alone reads and writes there, as no checkpoint is its own."""
    if is_local(output):
        yield join(output, "ray")
        return
    with tempfile.TemporaryDirectory(prefix="data-engine-ray-") as folder:
        yield folder


def _gpus() -> int:
    import ray

    return int(ray.cluster_resources().get("GPU", 0))


def _on_gpus(device: str, there: int, workers: int) -> bool:
    """Raises ClusterError where GPUs are asked for by name and there are too few: on CPUs it would take weeks."""
    if device == "cpu":
        return False
    if there < workers and device != "auto":
        raise ClusterError(
            f"--device {device}: the cluster has {there} GPUs for {workers} workers; use fewer workers, or "
            "--device auto to train on CPUs"
        )
    if 0 < there < workers:
        logger.warning("the cluster has %d GPUs for %d workers: all of them train on CPUs", there, workers)
    return there >= workers


def _work(config: dict[str, Any]) -> None:
    import ray.train.torch

    if is_local(config["output"]):
        _insist_on_shared(Path(config["output"]))
    settings = TrainingSettings.model_validate(config["settings"])
    device = ray.train.torch.get_device()
    settings = settings.model_copy(update={"run": settings.run.model_copy(update={"device": str(device)})})
    sources = open_sources(config["data"], settings)
    # Asked to end, it is a worker that has done its work: the driver knows.
    with suppress(Stopped):
        train_into(
            settings,
            sources,
            config["output"],
            data_name=config["data"],
            workers=Together(),
            stop=BellHeard(config["bell"]),
        )


def _insist_on_shared(folder: Path) -> None:
    """Raises ClusterError where the folder that was made on the driver's node is not there on this worker's.

    A folder of the node's own would take a state that the next run, on another node, does not find.
    """
    if not folder.is_dir():
        raise ClusterError(
            f"--output {folder} is not there on the node {platform.node()}: name a folder that all nodes share, or a "
            "store"
        )


def _cause(error: BaseException) -> str:
    """The last line that is not empty of the innermost error: the worker's own message."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return re.sub(r"^data_engine\.errors\.\w+: ", "", lines[-1]) if lines else type(error).__name__
