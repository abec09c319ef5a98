"""Rows in, finished Parquet files out: one slice of a shard, in memory, ready to be put in one piece."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data_engine.dataset.schema import IMAGES, MASKS, REJECTS, with_metadata

ROWS_PER_GROUP = 10_000
_DICTIONARY = ["image_id", "shard", "status", "error_type", "label", "reason"]
_NO_STATISTICS = ["counts", "sha256", "error_message"]


@dataclass(frozen=True, slots=True)
class FinishedFile:
    data: bytes
    rows: int

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()


class SliceWriter:
    """Collects images and their masks in order. Masks are compressed group by group, so memory stays small."""

    def __init__(self, metadata: Mapping[str, Any]) -> None:
        self._images = _Table(IMAGES, metadata)
        self._masks = _Table(MASKS, metadata)
        self._metadata = metadata
        self._rejects: _Table | None = None

    def add(
        self,
        image: Mapping[str, Any],
        masks: Mapping[str, Any] | None = None,
        rejects: Mapping[str, Any] | None = None,
    ) -> None:
        """One image row and the columns of its masks and rejects, named as in the schema.

        image_id, mask_id and the nullable label columns of the masks are filled in here, and candidate_id.
        """
        self._images.extend({name: [image[name]] for name in IMAGES.names}, 1)
        count = len(masks["counts"]) if masks else 0
        if masks and count:
            columns = {
                "image_id": [image["image_id"]] * count,
                "mask_id": range(count),
                "label": [None] * count,
                "label_score": [None] * count,
                **masks,
            }
            self._masks.extend(columns, count)
        count = len(rejects["counts"]) if rejects else 0
        if rejects and count:
            self._rejects = self._rejects or _Table(REJECTS, self._metadata)
            self._rejects.extend(
                {"image_id": [image["image_id"]] * count, "candidate_id": range(count), **rejects}, count
            )

    def finish(self) -> tuple[FinishedFile, FinishedFile]:
        """(images file, masks file)"""
        return self._images.finish(), self._masks.finish()

    def finish_rejects(self) -> FinishedFile | None:
        """The rejects file, if there was any."""
        return self._rejects.finish() if self._rejects else None


class _Table:
    """A Parquet file growing in memory."""

    def __init__(self, schema: pa.Schema, metadata: Mapping[str, Any]) -> None:
        self._schema = with_metadata(schema, metadata)
        self._sink = pa.BufferOutputStream()
        self._writer = pq.ParquetWriter(
            self._sink,
            self._schema,
            compression="zstd",
            compression_level=3,
            use_dictionary=[name for name in _DICTIONARY if name in schema.names],
            write_statistics=[name for name in schema.names if name not in _NO_STATISTICS],
            write_page_index=True,
            write_page_checksum=True,
        )
        self._pending: list[pa.RecordBatch] = []
        self._pending_rows = self._rows = 0

    def extend(self, columns: Mapping[str, Any], rows: int) -> None:
        arrays = [pa.array(columns[field.name], type=field.type) for field in self._schema]
        self._pending.append(pa.RecordBatch.from_arrays(arrays, schema=self._schema))
        self._pending_rows += rows
        self._rows += rows
        if self._pending_rows >= ROWS_PER_GROUP:
            self._flush()

    def finish(self) -> FinishedFile:
        self._flush()
        self._writer.close()
        return FinishedFile(self._sink.getvalue().to_pybytes(), self._rows)

    def _flush(self) -> None:
        if self._pending:
            table = pa.Table.from_batches(self._pending, self._schema).unify_dictionaries()
            self._writer.write_table(table, row_group_size=2 * ROWS_PER_GROUP)
            self._pending, self._pending_rows = [], 0
