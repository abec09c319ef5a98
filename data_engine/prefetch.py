"""Work that threads do ahead of the one who uses it, in order and within bounds."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

A = TypeVar("A")
B = TypeVar("B")


def prefetched(items: Iterable[A], work: Callable[[A], B], threads: int) -> Generator[B, None, None]:
    """`work` of each item, in the order of the items, whatever the number of threads.

    One more thread draws the items. At most 2 * `threads` + 1 are drawn and not yet yielded. What drawing or work
    raises is raised when the item's turn comes. Whoever closes it, or leaves it by an error, waits for no thread.
    """
    iterator = iter(items)
    reader = ThreadPoolExecutor(1, thread_name_prefix="read")
    pool = ThreadPoolExecutor(threads, thread_name_prefix="prefetch")

    def begin() -> Future[B] | None:
        for item in iterator:
            return pool.submit(work, item)
        return None

    try:
        ahead = deque(reader.submit(begin) for _ in range(2 * threads + 1))
        while (begun := ahead.popleft().result()) is not None:
            result = begun.result()
            del begun  # a consumer that takes its time should not keep two
            ahead.append(reader.submit(begin))
            yield result
            del result
    finally:
        reader.shutdown(wait=False, cancel_futures=True)
        pool.shutdown(wait=False, cancel_futures=True)
