"""Several workers on one training, through Ray Train: it sets up their process group, `workers.Together` uses it.

Each worker has a model of its own and reads its share of the data; gradients are averaged at each step.
"""

from __future__ import annotations

import logging
import platform
import re
from pathlib import Path
from typing import Any

from data_engine.errors import ClusterError, DataEngineError, UsageError
from data_engine.train.supervised.output_lock import only_writer
from data_engine.train.supervised.run import WEIGHTS, open_sources, output_folder, train
from data_engine.train.supervised.settings import TrainingSettings
from data_engine.train.supervised.workers import Together

logger = logging.getLogger(__name__)


def train_on_ray(settings: TrainingSettings, data: str, output: str, workers: int) -> Path:
    """Trains with `workers` workers, on GPUs if the cluster has as many, else on CPUs. Returns the path of the weights.

    `output` and the data must be reachable from every node. A worker that dies ends the run; the same command goes on.
    Raises UsageError, and ClusterError with the cause for a worker that failed.
    """
    try:
        import ray
        from ray.train import RunConfig, ScalingConfig
        from ray.train.torch import TorchConfig, TorchTrainer
    except ImportError:
        raise UsageError("--workers needs Ray: pip install 'data-engine[ray]'") from None
    folder = output_folder(output).absolute()
    with only_writer(folder):  # what is wrong is said here, not by a worker; worker 0 has the lock while it trains
        open_sources(data, settings)
    if not ray.is_initialized():
        ray.init(log_to_driver=True)
    gpus = _on_gpus(settings.run.device, int(ray.cluster_resources().get("GPU", 0)), workers)
    trainer = TorchTrainer(
        _work,
        train_loop_config={"settings": settings.model_dump(mode="json"), "data": data, "output": str(folder)},
        torch_config=TorchConfig(backend="nccl" if gpus else "gloo"),
        scaling_config=ScalingConfig(num_workers=workers, use_gpu=gpus),
        run_config=RunConfig(name="train", storage_path=str(folder / "ray")),
    )
    try:
        trainer.fit()
    except DataEngineError:
        raise
    except Exception as error:  # Ray wraps what a worker raised in types that differ from version to version
        raise ClusterError(f"a worker failed: {_cause(error)}; the same command goes on from {folder}") from error
    return folder / WEIGHTS


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

    _insist_on_shared(Path(config["output"]))
    settings = TrainingSettings.model_validate(config["settings"])
    device = ray.train.torch.get_device()
    settings = settings.model_copy(update={"run": settings.run.model_copy(update={"device": str(device)})})
    sources = open_sources(config["data"], settings)
    train(settings, sources, config["output"], data_name=config["data"], workers=Together())


def _insist_on_shared(folder: Path) -> None:
    """Raises ClusterError where the folder that was made on the driver's node is not there on this worker's.

    A folder of the node's own would take a state that the next run, on another node, does not find.
    """
    if not folder.is_dir():
        raise ClusterError(
            f"--output {folder} is not there on the node {platform.node()}: name a folder that all nodes share"
        )


def _cause(error: BaseException) -> str:
    """The last line that is not empty of the innermost error: the worker's own message."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return re.sub(r"^data_engine\.errors\.\w+: ", "", lines[-1]) if lines else type(error).__name__
