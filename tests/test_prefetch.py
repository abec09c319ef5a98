"""Work ahead of its use: the order of the items, so many of them and no more, errors in their turn."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from data_engine.prefetch import prefetched


def uneven(number: int) -> int:
    time.sleep(0.002 * (number * 7 % 5))
    return number * number


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_the_order_is_that_of_the_items(threads):
    assert list(prefetched(range(40), uneven, threads)) == [number * number for number in range(40)]


@pytest.mark.parametrize("threads", [1, 3])
def test_no_more_are_held_than_is_said(threads):
    drawn = 0

    def items() -> Iterator[int]:
        nonlocal drawn
        while drawn < 100:
            drawn += 1
            yield drawn

    for used, _ in enumerate(prefetched(items(), uneven, threads)):
        time.sleep(0.003)
        assert drawn <= used + 1 + 2 * threads + 1


def test_what_goes_wrong_is_raised_in_its_turn():
    def items() -> Iterator[int]:
        yield from range(6)
        raise OSError("the store is gone")

    def work(number: int) -> int:
        if number == 4:
            raise ValueError("damaged")
        return number

    seen: list[int] = []
    with pytest.raises(ValueError, match="damaged"):
        seen += [*prefetched(range(6), work, 3)]
    for number in (found := prefetched(items(), lambda number: number, 3)):
        seen.append(number)
        if number == 5:
            break
    assert seen == [0, 1, 2, 3, 4, 5]
    with pytest.raises(OSError, match="the store is gone"):
        next(found)


def test_whoever_leaves_waits_for_no_thread():
    held = threading.Event()
    found = prefetched(range(10), lambda number: held.wait(30) if number else number, 2)
    assert next(found) == 0
    begun = time.monotonic()
    found.close()
    assert time.monotonic() - begun < 5
    held.set()


def test_the_threads_are_others_than_the_one_that_asks():
    def items() -> Iterator[str]:
        for _ in range(4):
            yield threading.current_thread().name

    found = list(prefetched(items(), lambda reader: (reader, threading.current_thread().name), 2))
    mine = threading.current_thread().name
    assert all(mine not in names for names in found)
