"""Pieces written by several processes at once, whose rows are counted in one place."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from itertools import islice
from typing import Any, TypeVar

from data_engine.errors import DatasetError

Given = TypeVar("Given")
Made = TypeVar("Made")

_QUEUED_PER_WORKER = 2
_SECONDS_BETWEEN_COUNTS = 0.5


def in_processes(
    work: Callable[[Given, Callable[[], None]], Made],
    items: Iterable[Given],
    workers: int,
    on_count: Callable[[int], None] = lambda count: None,
    remedy: str = "the same command with fewer --workers goes on",
) -> Iterator[tuple[Given, Made]]:
    """(item, work(item, count)) as they are ready, in any order; `work` calls `count` for each row.

    on_count is told how many rows that makes in all processes. Raises what `work` raises, and DatasetError with the
    remedy when a process dies. What is being worked on then is finished before this process ends, but for an interrupt.
    """
    others = set(multiprocessing.active_children())
    context = multiprocessing.get_context("spawn")  # a forked child would inherit the threads of the store's client
    counter = context.Value("q", 0)
    pool = ProcessPoolExecutor(workers, context, initializer=_enter, initargs=(counter,))
    waiting = iter(items)
    running: dict[Future[Made], Given] = {}
    try:
        while True:
            for item in islice(waiting, _QUEUED_PER_WORKER * workers - len(running)):
                running[pool.submit(_counted, work, item)] = item
            if not running:
                break
            ready = wait(running, timeout=_SECONDS_BETWEEN_COUNTS, return_when=FIRST_COMPLETED).done
            on_count(counter.value)
            for future in ready:
                yield running.pop(future), future.result()
    except (KeyboardInterrupt, GeneratorExit):
        for process in set(multiprocessing.active_children()) - others:
            process.terminate()
        running.clear()
        raise
    except BrokenProcessPool:
        raise DatasetError(f"a process died, perhaps for want of memory; {remedy}") from None
    finally:
        pool.shutdown(wait=not running, cancel_futures=True)
        del pool, counter  # with their semaphores, though a traceback keeps this frame


def in_order(
    work: Callable[[Given, Callable[[], None]], Made], items: Sequence[Given], workers: int, *, remedy: str
) -> Iterator[Made]:
    """work(item, count) of each item, in their order; in this process where there is one worker or one item."""
    workers = min(workers, len(items))
    if workers < 2:
        yield from (work(item, lambda: None) for item in items)
        return
    ready: dict[int, Made] = {}
    following = 0
    for (number, _), made in in_processes(partial(_of_numbered, work), enumerate(items), workers, remedy=remedy):
        ready[number] = made
        while following in ready:
            yield ready.pop(following)
            following += 1


def _of_numbered(
    work: Callable[[Given, Callable[[], None]], Made], item: tuple[int, Given], count: Callable[[], None]
) -> Made:
    return work(item[1], count)


def cpus() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


_counter: Any = None  # of this process, when it is one of the pool's


def _enter(counter: Any) -> None:
    global _counter  # noqa: PLW0603 - what a pool gives its processes has no other way in
    _counter = counter
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # stopped at once and in silence: the parent says what there is to say
    threading.Thread(target=_end_with_the_parent, daemon=True).start()


def _end_with_the_parent() -> None:
    """A killed parent would leave its processes waiting for work."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _counted(work: Callable[[Given, Callable[[], None]], Made], item: Given) -> Made:
    def count() -> None:
        with _counter.get_lock():
            _counter.value += 1

    return work(item, count)
