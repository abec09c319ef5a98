"""The edits of an hour once more, in one file, so that ten thousand of them are not ten thousand requests.

`_corrections/by_hour/<hour>.parquet` repeats edits that lie in files of their own. It is a help and nothing else: the
files alone say which edits there are, and of one that a pack lacks, or where it is gone or damaged, the file is read.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any

from data_engine.corrections.edits import EDITS, Edit
from data_engine.dataset.sealed_rows import read_rows, write_rows
from data_engine.errors import DataEngineError
from data_engine.pipeline.commit import put
from data_engine.retry import ONCE
from data_engine.storage import join, list_names, read_bytes

log = logging.getLogger(__name__)

_WORTH_LISTING = 20  # files that are left to read
_READERS = 8


class Packs:
    """Those of one dataset."""

    def __init__(self, folder: str) -> None:
        """folder: of the corrections."""
        self._folder = join(folder, "by_hour")

    def read(self, names: Collection[str]) -> dict[str, dict[str, Any]]:
        """The rows of these files, as far as they are in packs."""
        if len(names) < _WORTH_LISTING:
            return {}
        wanted = set(names)
        hours = {f"{hour_of(name)}.parquet" for name in names}
        packs = [pack for pack in list_names(self._folder) if pack in hours]
        found: dict[str, dict[str, Any]] = {}
        with ThreadPoolExecutor(_READERS) as pool:
            for rows in pool.map(self._rows, packs):
                found |= {Edit(**row).file_name: row for row in rows}
        return {name: row for name, row in found.items() if name in wanted}

    def write(self, hour: str, edits: Sequence[Edit]) -> None:
        """Over what was known of the hour before. Where it fails, readers go on without."""
        uri = join(self._folder, f"{hour}.parquet")
        try:
            put(uri, write_rows([asdict(edit) for edit in edits], EDITS), ONCE)
        except DataEngineError as error:
            log.warning("%s is not written (%s): opening the corrections takes longer", uri, error)

    def _rows(self, name: str) -> list[dict[str, Any]]:
        uri = join(self._folder, name)
        try:
            return read_rows(read_bytes(uri), EDITS)
        except (ValueError, FileNotFoundError) as error:
            log.warning("%s cannot be used (%s): its edits are read one by one", uri, error)
            return []


def hour_of(name: str) -> str:
    """ "20260302T09" of the file of an edit."""
    return name[:11]
