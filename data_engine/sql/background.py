"""Work in a thread of its own: while DuckDB works, the thread that asked can still be interrupted."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from queue import Empty, Queue
from threading import Event, Thread
from typing import Any, TypeVar

import pyarrow as pa

T = TypeVar("T")

_AHEAD = 4  # batches
_POLL_S = 0.1
_BEGINS_S = 1.0


def interruptible(work: Callable[[], T], interrupt: Callable[[], None]) -> T:
    """`work()`. Ctrl-C calls `interrupt` until the work has ended by it, and is then raised."""
    done: Future[T] = Future()

    def run() -> None:
        try:
            done.set_result(work())
        except BaseException as error:
            done.set_exception(error)

    thread = Thread(target=run, name="interruptible", daemon=True)
    try:
        thread.start()
        return done.result()
    except KeyboardInterrupt:
        # Again and again: between two queries DuckDB would not hear of it. A thread that was being started may be about
        # to begin.
        begins_by = time.monotonic() + _BEGINS_S
        while not done.done() and (thread.is_alive() or time.monotonic() < begins_by):
            interrupt()
            wait([done], _POLL_S)
        raise


class BackgroundAnswer:
    """Batches of rows, in order. `interrupt` stops what `start` runs; it is called on Ctrl-C and by `close`."""

    def __init__(self, start: Callable[[], pa.RecordBatchReader], interrupt: Callable[[], None]) -> None:
        """Waits until the first batch is there or the answer has none. Raises what `start` raises."""
        self._start = start
        self._interrupt = interrupt
        self._closed = Event()
        self._ready: Queue[Any] = Queue(_AHEAD)  # a schema, batches, None at the end; or an exception
        self._thread = Thread(target=self._run, name="query", daemon=True)
        self._thread.start()
        self._schema: pa.Schema = self._next()

    def reader(self) -> pa.RecordBatchReader:
        return pa.RecordBatchReader.from_batches(self._schema, self._batches())

    def close(self) -> None:
        """Stops the query, if it runs, and waits for its thread."""
        self._closed.set()
        while self._thread.is_alive():
            self._interrupt()
            self._thread.join(_POLL_S)
            self._drain()

    def _batches(self) -> Iterator[pa.RecordBatch]:
        while (batch := self._next()) is not None:
            yield batch

    def _next(self) -> Any:
        try:
            found = self._ready.get()
        except KeyboardInterrupt:
            self.close()
            raise
        if isinstance(found, Exception):
            raise found
        return found

    def _run(self) -> None:
        try:
            reader = self._start()
            self._ready.put(reader.schema)
            for batch in reader:
                self._ready.put(batch)
                if self._closed.is_set():
                    return
            self._ready.put(None)
        except Exception as error:
            self._ready.put(error)

    def _drain(self) -> None:
        try:
            while True:
                self._ready.get_nowait()
        except Empty:
            pass
