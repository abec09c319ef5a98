"""The end of a process, without Python's own last step: taking the interpreter apart.

Arrow's threads may hold Python objects a moment longer than the call that needed them. One that lets go of such an
object while the interpreter is taken apart ends the process with SIGABRT, after all work was done and said
(https://github.com/apache/arrow/issues/34314): a job server would take the job for failed.
"""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Callable
from contextlib import suppress


def run_as_process(run: Callable[[], int | None]) -> None:
    """Calls `run`, for its exit code or its SystemExit, and ends the process with that code.

    Threads are waited for, and what `run` and its libraries have registered to run at exit runs, as ever.
    """
    codes: list[int] = []
    atexit.register(_leave, codes)  # what is registered first runs last
    try:
        code = run()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) or end.code is None else 1
        codes.append(code or 0)
        raise
    codes.append(code or 0)
    sys.exit(code)


def _leave(codes: list[int]) -> None:
    if not codes:
        return  # an error that nothing caught: Python says it, and its own way out is the right one
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # nobody reads it any more, or it is closed
            stream.flush()
    os._exit(codes[0])
