"""Which slice of a dataset holds an image, by its id. The ids are read once, and kept on this machine.

Slices never change once committed, and the index knows them by the sha256 of their files. So it is never stale: of a
dataset that has grown only the new slices are read, and slices that are no more are forgotten.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock

import numpy as np

from data_engine.dataset.commits import CommitRecord
from data_engine.dataset.id_table import IdTable, hashes_of
from data_engine.errors import DatasetError, StorageError

log = logging.getLogger(__name__)

WORTH_KEEPING = 256  # slices: those of a smaller dataset are soon read again

_READING = Lock()  # of all indexes: one that had its own could not be sent to another process
_READERS = 32
_STEP = 2048  # slices, at least, that are read before what was found is kept


class IdIndex:
    """Finds rows among the committed slices of one dataset.

    Reads slices in their order until what is looked for is found: all of them for an id that is not there. Threads
    may share it.
    """

    def __init__(
        self, records: Sequence[CommitRecord], read_ids: Callable[[CommitRecord], list[str]], file: Path | None = None
    ) -> None:
        """read_ids: the ids of a slice, in order. file: where the index is kept on this machine; None: nowhere."""
        self._records = {record.images.sha256: record for record in records}
        self._numbers = {sha256: number for number, sha256 in enumerate(self._records)}
        self._read_ids = read_ids
        self._file = file if len(self._records) >= WORTH_KEEPING else None
        self._table = (IdTable.load(self._file) if self._file else IdTable.empty()).only(self._records.keys())

    @property
    def whole(self) -> bool:
        """Whether all slices have been read."""
        return len(self._table.slices) == len(self._records)

    def find(self, ids: Iterable[str]) -> list[tuple[CommitRecord, list[int]]]:
        """Slices in their order, and the rows of each, ascending, whose ids have the hashes of `ids`.

        These are the rows of `ids`, and once in a million years that of another id: look at what is there. Raises
        KeyError for an id that is nowhere, DatasetError and StorageError where a slice that may hold it is unreadable.
        """
        wanted = list(dict.fromkeys(ids))
        hashes = hashes_of(wanted)
        self._read_until(lambda: bool(self._table.has(hashes).all()))
        table = self._table
        lacking = np.flatnonzero(~table.has(hashes))
        if len(lacking):
            raise KeyError(wanted[lacking[0]])
        slices, rows = table.places(hashes)
        cuts = np.flatnonzero(np.diff(slices)) + 1
        found = [
            (self._records[table.slices[of[0]]], some.tolist())
            for of, some in zip(np.split(slices, cuts), np.split(rows, cuts), strict=True)
            if len(of)
        ]
        return sorted(found, key=lambda place: self._numbers[place[0].images.sha256])

    def read_all(self) -> None:
        """Reads the slices that nothing needed yet. Raises DatasetError and StorageError where one is unreadable."""
        self._read_until(lambda: False)

    def _read_until(self, done: Callable[[], bool]) -> None:
        """A slice that cannot be read is passed over, until next time; its error is raised if it matters."""
        if done():
            return
        with _READING:
            known = set(self._table.slices)
            unread = [record for sha256, record in self._records.items() if sha256 not in known]
            failure: Exception | None = None
            while unread and not done():
                step = max(_STEP, len(self._table.slices) // 4)  # what is written adds up to a few times the table
                failure = self._read(unread[:step]) or failure
                unread = unread[step:]
            if failure is not None and not done():
                raise failure

    def _read(self, records: Sequence[CommitRecord]) -> Exception | None:
        """Adds these slices, and returns the error of one that cannot be read."""
        with ThreadPoolExecutor(_READERS, thread_name_prefix="ids") as pool:
            results = list(pool.map(self._hashes_of_slice, records))
        found = [
            (record.images.sha256, result)
            for record, result in zip(records, results, strict=True)
            if isinstance(result, np.ndarray)
        ]
        if found:
            self._keep(self._table.extended(found))
        return next((result for result in results if isinstance(result, Exception)), None)

    def _hashes_of_slice(self, record: CommitRecord) -> np.ndarray | Exception:
        try:
            return hashes_of(self._read_ids(record))
        except (DatasetError, StorageError) as error:
            return error

    def _keep(self, table: IdTable) -> None:
        self._table = table
        if self._file is None:
            return
        try:
            table.save(self._file)
        except OSError as error:
            log.warning("%s cannot be written (%s): the ids are read again by the next process", self._file, error)
            self._file = None
            return
        kept = IdTable.load(self._file)
        if kept.slices == table.slices:  # and not what another process put there meanwhile
            self._table = kept
