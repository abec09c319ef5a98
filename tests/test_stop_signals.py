"""The first signal asks, the second ends at once; and nobody's handlers are left changed."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator

import pytest

from data_engine.stop_signals import stop_signals

SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


@pytest.fixture(autouse=True)
def terminal() -> Iterator[None]:
    """As in one, whatever the suite runs under."""
    previous = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, previous)


def send(number: int) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_asks_and_the_second_ends(number: int) -> None:
    notes: list[str] = []
    with stop_signals(notes.append) as stop, stop.gently():
        send(number)
        assert stop.asked()
        assert notes == [f"{signal.Signals(number).name}: stopping; once more to stop at once"]
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)


@pytest.mark.parametrize("number", SIGNALS)
def test_outside_of_gentle_work_the_first_ends(number: int) -> None:
    with stop_signals(pytest.fail) as stop:
        with stop.gently():
            pass
        with pytest.raises(KeyboardInterrupt):
            send(number)


@pytest.mark.parametrize("number", SIGNALS)
def test_within_gentle_work_there_is_what_ends_at_once(number: int) -> None:
    notes: list[str] = []
    with stop_signals(notes.append) as stop, stop.gently():
        with stop.at_once():
            pass
        with pytest.raises(KeyboardInterrupt), stop.at_once():
            send(number)
        assert stop.asked()
        with pytest.raises(KeyboardInterrupt), stop.at_once():
            pytest.fail("it was asked to end before")
        assert not notes


def test_a_terminal_that_closes_says_it_twice() -> None:
    with stop_signals(lambda _: None) as stop, stop.gently():
        send(signal.SIGHUP)
        send(signal.SIGHUP)


def test_handlers_are_given_back_and_nohup_is_respected() -> None:
    previous = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        before = [signal.getsignal(number) for number in SIGNALS]
        with stop_signals(pytest.fail) as stop, stop.gently():
            send(signal.SIGHUP)
            assert not stop.asked()
        assert [signal.getsignal(number) for number in SIGNALS] == before
    finally:
        signal.signal(signal.SIGHUP, previous)


@pytest.mark.parametrize("number", SIGNALS)
def test_of_two_the_inner_one_listens(number: int) -> None:
    notes: list[str] = []
    with stop_signals(pytest.fail) as outer:
        with stop_signals(notes.append) as stop, stop.gently():
            send(number)
        assert (stop.asked(), outer.asked(), len(notes)) == (True, False, 1)


def test_threads_cannot_listen_and_work_all_the_same() -> None:
    asked: list[bool] = []

    def work() -> None:
        with stop_signals(pytest.fail) as stop, stop.gently():
            asked.append(stop.asked())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert asked == [False]
