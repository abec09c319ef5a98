"""What an error of the device means: too little memory, which smaller work avoids, or a device that is gone.

After an illegal memory access, a failed assertion in a kernel or an uncorrectable memory error, CUDA answers every
further call of the process with the same error: only another process can use the device again.
"""

from __future__ import annotations

import re

import torch

_NO_MEMORY = re.compile(
    r"(CUDA|HIP) (driver )?error: out of memory|Triton Error \[(CUDA|HIP)\]: out of memory|"
    r"STATUS_(\w+_)?ALLOC(ATION)?_FAILED|can't allocate memory|not enough memory"
)
_OF_THE_DEVICE = re.compile(r"(CUDA|HIP) (driver )?error: ")
# Refusals to start one piece of work. The device goes on.
_OF_ONE_CALL = re.compile(
    r"error: (invalid argument|invalid configuration argument|invalid device function|operation not supported|"
    r"too many resources requested for launch|no kernel image is available|CUBLAS_STATUS_(INVALID_VALUE|NOT_SUPPORTED))"
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether less work at a time may succeed. torch has a type for its own allocator only."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and _NO_MEMORY.search(str(error)) is not None


def loses_device(error: BaseException, device: torch.device) -> bool:
    """Whether nothing more can be computed on `device` by this process after `error`."""
    if is_out_of_memory(error):
        return False
    text = str(error)
    of_the_device = isinstance(error, torch.AcceleratorError) or _OF_THE_DEVICE.search(text) is not None
    if of_the_device and not _OF_ONE_CALL.search(text):
        return True
    return not _answers(device)


def _answers(device: torch.device) -> bool:
    if device.type != "cuda":
        return True
    try:
        torch.cuda.synchronize(device)
    except RuntimeError:
        return False
    return True
