"""Every library words its lack of memory in its own way."""

from __future__ import annotations

import pytest
import torch

from data_engine.sam.device_errors import is_out_of_memory, loses_device

TEXTS = (
    "CUDA error: out of memory",
    "CUDA driver error: out of memory",
    "HIP error: out of memory",
    "Triton Error [CUDA]: out of memory",
    "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
    "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",  # as of cuDNN 9
    "[enforce fail at alloc_cpu.cpp:119] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes",
)


@pytest.mark.parametrize("text", TEXTS)
def test_too_little_memory(text: str) -> None:
    error = RuntimeError(text)
    assert is_out_of_memory(error)
    assert not loses_device(error, torch.device("cpu"))


@pytest.mark.parametrize(
    "text", ["Triton Error [CUDA]: an illegal memory access was encountered", "CUDNN_STATUS_EXECUTION_FAILED"]
)
def test_something_else(text: str) -> None:
    assert not is_out_of_memory(RuntimeError(text))
