"""Several workers on one training, through Ray Train: it sets up their process group, `workers.Together` uses it.

Each worker has a model of its own and reads its share of the data; gradients are averaged at each step.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from data_engine.errors import ClusterError, DataEngineError, UsageError
from data_engine.train.supervised.run import WEIGHTS, open_sources, output_folder, train
from data_engine.train.supervised.settings import TrainingSettings
from data_engine.train.supervised.workers import Together


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
    open_sources(data, settings)  # what is wrong with the data is said here, not by a worker
    if not ray.is_initialized():
        ray.init(log_to_driver=True)
    gpus = settings.run.device != "cpu" and ray.cluster_resources().get("GPU", 0) >= workers
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


def _work(config: dict[str, Any]) -> None:
    import ray.train.torch

    settings = TrainingSettings.model_validate(config["settings"])
    device = ray.train.torch.get_device()
    settings = settings.model_copy(update={"run": settings.run.model_copy(update={"device": str(device)})})
    sources = open_sources(config["data"], settings)
    train(settings, sources, config["output"], data_name=config["data"], workers=Together())


def _cause(error: BaseException) -> str:
    """The last line that is not empty of the innermost error: the worker's own message."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return re.sub(r"^data_engine\.errors\.\w+: ", "", lines[-1]) if lines else type(error).__name__
