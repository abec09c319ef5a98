"""Duplicates among the masks of each slice, kept beside a dataset, so that each slice is compared once for each IoU.

`_dedup/masks-<IoU>-<owner>-<number>.parquet`: rows of MASK_DUPLICATES, slice by slice; their metadata say of which.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pyarrow as pa

from data_engine.dataset.commits import CommitRecord
from data_engine.dataset.duplicates import MASK_DUPLICATES
from data_engine.dedup.kept_files import KeptFiles

SLICES_PER_FILE = 256  # what a run that is killed loses at most,
SECONDS_PER_FILE = 60.0  # or what was compared in so many

_RULE = "the higher predicted IoU stays, then the smaller mask_id"


class MaskStore:
    """What is known of the slices of the dataset at `root`, and what is found now."""

    def __init__(self, root: str, fingerprint: str, iou: float, folder: Path) -> None:
        """fingerprint: of the dataset's plan. folder: for files on their way, on this machine.

        Raises DatasetError for a damaged file.
        """
        origin = {"fingerprint": fingerprint, "iou": iou, "rule": _RULE}
        self._files = KeptFiles(root, f"masks-{iou}", origin, "its duplicates of masks")
        self._folder = folder
        self._places: dict[str, tuple[str, int, int]] = {}  # by a slice's masks: file, first row, rows
        self._read: tuple[str, pa.Table] | None = None  # the file that was read last
        self._found: list[tuple[CommitRecord, pa.Table]] = []
        self._since = time.monotonic()
        for name in self._files.names():
            metadata, _ = self._files.read(name) or ({"slices": []}, None)
            self._add_places(name, metadata)

    def __contains__(self, record: CommitRecord) -> bool:
        """Whether an earlier run has compared this slice."""
        return record.masks.sha256 in self._places

    def rows(self, record: CommitRecord) -> pa.Table:
        """What an earlier run found in a slice."""
        name, first, rows = self._places[record.masks.sha256]
        if self._read is None or self._read[0] != name:
            _, table = self._files.read(name) or ({}, MASK_DUPLICATES.empty_table())
            self._read = name, table.replace_schema_metadata()
        return self._read[1].slice(first, rows)

    def add(self, record: CommitRecord, table: pa.Table) -> None:
        """Keeps what was found in a slice, soon."""
        self._found.append((record, table))
        if len(self._found) >= SLICES_PER_FILE or time.monotonic() - self._since >= SECONDS_PER_FILE:
            self.flush()

    def flush(self) -> None:
        """Keeps what was found, if anything."""
        if self._found:
            slices = [[record.masks.sha256, table.num_rows] for record, table in self._found]
            self._files.put(pa.concat_tables([table for _, table in self._found]), self._folder, slices=slices)
        self._found, self._since = [], time.monotonic()

    def _add_places(self, name: str, metadata: dict[str, Any]) -> None:
        first = 0
        for sha256, rows in metadata["slices"]:
            self._places.setdefault(sha256, (name, first, rows))
            first += rows
