"""Finding out what is wrong before a long job does."""

from __future__ import annotations

import os
import platform
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from data_engine import __version__
from data_engine.errors import DataEngineError
from data_engine.masks.generator import MaskGenerator
from data_engine.pipeline.commit import check_store
from data_engine.retry import Patience
from data_engine.sam.segmenter import choose_device, load_segmenter
from data_engine.storage import is_local, local_path


@dataclass(frozen=True, slots=True)
class Finding:
    subject: str
    ok: bool
    text: str


def examine(output: str | None, model: str, device: str, single_writer: bool = False) -> Iterator[Finding]:
    """Checks the installation, the device, the model and, if one is named, the store. Leaves nothing there."""
    yield Finding(
        "software", True, f"data-engine {__version__}, Python {platform.python_version()}, torch {torch.__version__}"
    )
    yield Finding("machine", True, f"{os.cpu_count()} CPUs, {torch.get_num_threads()} threads for torch")
    try:
        chosen = choose_device(device)
    except DataEngineError as error:
        yield Finding("device", False, str(error))
        return
    yield Finding("device", True, _describe(chosen))
    try:
        yield _time_model(model, device)
    except DataEngineError as error:
        yield Finding("model", False, str(error))
    if output is not None:
        yield from _examine_store(output, single_writer)


def _describe(device: torch.device) -> str:
    if device.type != "cuda":
        return str(device)
    free, total = torch.cuda.mem_get_info(device)
    return f"{device}: {torch.cuda.get_device_name(device)}, {free / 2**30:.1f} of {total / 2**30:.1f} GiB free"


def _time_model(name: str, device: str) -> Finding:
    segmenter = load_segmenter(name, device)
    generator = MaskGenerator(segmenter, points_per_side=8)
    noise = np.random.default_rng(0).integers(0, 256, (480, 640, 3), np.uint8)
    generator.run(generator.prepare(noise))  # the first run sets things up
    begun = time.perf_counter()
    generator.run(generator.prepare(noise))
    seconds = time.perf_counter() - begun
    checkpoint = segmenter.checkpoint
    assert checkpoint is not None
    text = f"{name} (sha256 {checkpoint.sha256[:12]}): {seconds:.2f} s for an image with 64 prompts, results finite"
    return Finding("model", True, text)


def _examine_store(output: str, single_writer: bool) -> Iterator[Finding]:
    begun = time.perf_counter()
    try:
        with _folders_removed(output):
            check_store(output, single_writer, Patience(seconds=10))
    except DataEngineError as error:
        yield Finding("store", False, str(error))
        return
    except Exception as error:  # a doctor must not die of what it looks for
        yield Finding("store", False, f"{output}: {type(error).__name__}: {error}")
        return
    holds = "is not asked for (a single writer)" if single_writer else "holds"
    seconds = time.perf_counter() - begun
    yield Finding("store", True, f"{output}: writes, reads, put-if-absent {holds} ({seconds:.2f} s)")
    if is_local(output):
        path = local_path(output)
        while not path.exists():
            path = path.parent
        free = shutil.disk_usage(path).free
        yield Finding("disk", free > 2**30, f"{free / 2**30:.1f} GiB free at {path}")


@contextmanager
def _folders_removed(output: str) -> Iterator[None]:
    """Removes the folders of a local output that were not there before, as long as they are empty."""
    made: list[Path] = []
    if is_local(output):
        plan = local_path(output) / "_plan"
        made = [folder for folder in (plan, *plan.parents) if not folder.exists()]
    try:
        yield
    finally:
        with suppress(OSError):  # another process has put something in
            for folder in made:
                folder.rmdir()
