"""The most memory that something took: of the GPU if there is one, else of this process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch

Result = TypeVar("Result")
_RESET_PEAK = "5"  # what the kernel takes as "forget the peak" (proc(5), clear_refs)


def with_peak_memory(device: torch.device, work: Callable[[], Result]) -> tuple[Result, int | None]:
    """(what `work` returned, peak bytes while it ran): tensors of torch's on a GPU, else all that is resident.

    What was there before counts too, such as the weights of all contenders. None where the system does not tell.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        result = work()
        return result, torch.cuda.max_memory_allocated(device)
    try:
        Path("/proc/self/clear_refs").write_text(_RESET_PEAK)
    except OSError:  # not Linux, or not allowed
        return work(), None
    result = work()
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return result, int(line.split()[1]) * 1024
    return result, None
