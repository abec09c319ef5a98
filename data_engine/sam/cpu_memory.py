"""Keeps memory that large tensors have freed, so that the next ones need not ask the system for it.

A network on a CPU allocates and frees tensors of megabytes thousands of times an image. glibc gives such memory back
to the kernel at once, and every page that comes again must be zeroed and mapped: a third of the time of a decoder.
"""

from __future__ import annotations

import ctypes
import os

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # malloc.h
_KEPT = 1 << 29  # bytes of freed memory, at most, that stay with the process
_LARGEST = 1 << 28  # bytes of a tensor; larger ones come and go as before


def keep_freed_memory() -> bool:
    """Sets the allocator of this process, once and for all. Returns whether it could.

    Only glibc has these settings, and whoever has made some with MALLOC_... variables knows better.
    """
    if any(name.startswith("MALLOC_") for name in os.environ):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, TypeError, AttributeError):
        return False
    # One arena, because those of further threads cannot grow beyond 64 MiB and give everything back.
    wanted = {_M_ARENA_MAX: 1, _M_MMAP_THRESHOLD: _LARGEST, _M_TRIM_THRESHOLD: _KEPT}
    done = [mallopt(option, value) for option, value in wanted.items()]
    return all(done)
