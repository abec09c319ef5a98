"""What a benchmark ran on, and what the machine can do at best: measured, with the threads that the benchmark has."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from data_engine import __version__
from data_engine.bench.clock import synchronise
from data_engine.bench.reference import tf32

_TRIES = 5
_LONG = 3.0  # seconds after which fewer tries do: bfloat16 is slow on processors that lack it


@dataclass(frozen=True, slots=True)
class Attainable:
    operations: dict[str, float]  # a second, of large products, by number format: float32, tf32, bfloat16
    bandwidth: float  # bytes a second, those read and those written, of a large copy


def machine_facts(device: torch.device) -> dict[str, Any]:
    """For the record: processor, device, versions."""
    facts: dict[str, Any] = {
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "data_engine": __version__,
    }
    for package in ("torchvision", "triton", "transformers", "numpy"):
        facts[package] = _version(package)
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        facts["gpu"] = properties.name
        facts["gpu_memory"] = properties.total_memory
        facts["cuda"] = torch.version.cuda
    return facts


def processor() -> str:
    """Its name as the kernel gives it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def attainable(device: torch.device, formats: tuple[str, ...], *, size: int | None = None) -> Attainable:
    """The best of some tries. size: side of the matrices; by default large for a GPU, half a second's work on a CPU."""
    side = size or (8192 if device.type == "cuda" else 2048)
    return Attainable(
        operations={name: 2 * side**3 / _product_seconds(device, name, side) for name in formats},
        bandwidth=_bandwidth(device, side * side * (64 if device.type == "cuda" else 16)),
    )


def _product_seconds(device: torch.device, number_format: str, side: int) -> float:
    dtype = torch.bfloat16 if number_format == "bfloat16" else torch.float32
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    with tf32(products=number_format == "tf32", convolutions=False):
        return _best(device, lambda: left @ right)


def _bandwidth(device: torch.device, size: int) -> float:
    source = torch.ones(size // 4, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / _best(device, lambda: target.copy_(source))


def _best(device: torch.device, work: Callable[[], Any]) -> float:
    """Seconds of the fastest try, after one to warm up."""
    seconds: list[float] = []
    for _ in range(_TRIES + 1):
        if len(seconds) > 1 and sum(seconds) > _LONG:
            break
        synchronise(device)
        begun = time.perf_counter()
        work()
        synchronise(device)
        seconds.append(time.perf_counter() - begun)
    return min(seconds[1:])
