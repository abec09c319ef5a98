"""Reading a dataset: whole tables, image by image, one image by id, or SQL. Only committed files are ever opened."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pad
import pyarrow.parquet as pq
from rlemasklib import RLEMask

from data_engine.dataset.commits import PLAN_FILE, CommitRecord, Part, Totals, read_commits
from data_engine.dataset.manifest import Manifest, read_manifest, read_manifest_commits
from data_engine.dataset.schema import IMAGES, MASKS, check_version
from data_engine.errors import DatasetError
from data_engine.retry import retried
from data_engine.storage import filesystem, is_local, join, read_bytes, translated

if TYPE_CHECKING:
    import duckdb


@dataclass(frozen=True, slots=True)
class DatasetImage:
    """An image and its masks."""

    row: dict[str, Any]  # its row of the images table
    masks: pa.Table  # its rows of the masks table, in order

    @property
    def image_id(self) -> str:
        return self.row["image_id"]

    def __len__(self) -> int:
        return self.masks.num_rows

    def mask(self, index: int) -> np.ndarray:
        """HxW bool."""
        counts = self.masks["counts"][index].as_py()
        size = [self.row["height"], self.row["width"]]
        return RLEMask.from_dict({"size": size, "counts": counts.encode("ascii")}).to_array().astype(bool)


class MaskDataset:
    """A dataset at a local path or fsspec URL, complete or still growing.

    dataset = MaskDataset("s3://bucket/masks")
    for image in dataset: ...
    dataset.masks(columns=["area", "predicted_iou"])          # an Arrow table
    dataset.duckdb().sql("select avg(area) from masks")
    """

    def __init__(self, root: str) -> None:
        """Raises DatasetError when there is no dataset at `root`, or one that this version cannot read."""
        self.root = str(root)
        try:
            plan = json.loads(read_bytes(join(self.root, PLAN_FILE)))
        except (FileNotFoundError, NotADirectoryError):
            raise DatasetError(f"no dataset at {self.root}: it has no {PLAN_FILE}") from None
        except ValueError:
            raise DatasetError(f"{join(self.root, PLAN_FILE)} is damaged: it is not JSON") from None
        if not isinstance(plan, dict):
            raise DatasetError(f"{join(self.root, PLAN_FILE)} is damaged: it is not a JSON object")
        check_version(str(plan.get("schema_version", "")), join(self.root, PLAN_FILE))
        self.plan: dict[str, Any] = plan
        self.manifest: Manifest | None = read_manifest(self.root)

    @cached_property
    def commits(self) -> list[CommitRecord]:
        """The committed slices, as they were when first asked for."""
        return read_manifest_commits(self.root, self.manifest) if self.manifest else read_commits(self.root)

    @property
    def complete(self) -> bool:
        return self.manifest is not None

    @property
    def totals(self) -> Totals:
        """Counts over all slices."""
        return self.manifest.totals if self.manifest else Totals.sum(record.totals for record in self.commits)

    def __len__(self) -> int:
        """Images, failed ones included."""
        return self.totals.images

    def __iter__(self) -> Iterator[DatasetImage]:
        for record in self.commits:
            yield from self.slice(record)

    def __getitem__(self, image_id: str) -> DatasetImage:
        """One image by id. Reads the id column until it is found, then only the row groups that hold its masks."""
        for record in self.commits:
            ids = self._open(record.images).read(columns=["image_id"])["image_id"]
            position = pc.index(ids, image_id).as_py()
            if position >= 0:
                images = self._open(record.images).read()
                before = pc.sum(images["n_masks"].slice(0, position)).as_py() or 0
                row = images.slice(position, 1).to_pylist()[0]
                return DatasetImage(row, self._mask_rows(record, before, row["n_masks"]))
        raise KeyError(image_id)

    def slice(self, record: CommitRecord) -> Iterator[DatasetImage]:
        """The images of one committed slice, in order, masks streamed row group by row group."""
        batches = self._open(record.masks).iter_batches()
        ready: pa.Table = MASKS.empty_table()
        for row in self._open(record.images).read().to_pylist():
            wanted = row["n_masks"]
            while ready.num_rows < wanted:
                batch = next(batches, None)
                if batch is None:
                    raise DatasetError(f"{join(self.root, record.masks.file)} has fewer masks than its images say")
                ready = pa.concat_tables([ready, pa.Table.from_batches([batch]).replace_schema_metadata()])
            yield DatasetImage(row, ready.slice(0, wanted))
            ready = ready.slice(wanted)

    def image_ids(self, record: CommitRecord) -> list[str]:
        """Ids of the images of one committed slice, in order."""
        uri = join(self.root, record.images.file)

        def read() -> list[str]:
            with translated(uri):
                return self._open(record.images).read(columns=["image_id"])["image_id"].to_pylist()

        return retried(read)

    def images(self, columns: Sequence[str] | None = None, filter: pc.Expression | None = None) -> pa.Table:
        """The images table, or some columns and rows of it."""
        return self.arrow("images").to_table(columns=list(columns) if columns else None, filter=filter)

    def masks(self, columns: Sequence[str] | None = None, filter: pc.Expression | None = None) -> pa.Table:
        """The masks table, or some columns and rows of it."""
        return self.arrow("masks").to_table(columns=list(columns) if columns else None, filter=filter)

    def arrow(self, table: str) -> pad.Dataset:
        """ "images" or "masks" as an Arrow dataset over exactly the committed files: scans stream."""
        schema = {"images": IMAGES, "masks": MASKS}[table]
        paths = [self._path(getattr(record, table)) for record in self.commits]
        if not paths:
            return pad.dataset(schema.empty_table())
        return pad.dataset(paths, schema=schema, format="parquet", filesystem=self._filesystem)

    def duckdb(self) -> duckdb.DuckDBPyConnection:
        """A DuckDB connection with the views `images` and `masks` over exactly the committed files."""
        try:
            import duckdb
        except ImportError:
            raise DatasetError("SQL needs duckdb: pip install 'data-engine[sql]'") from None
        connection = duckdb.connect()
        if not is_local(self.root):
            connection.register_filesystem(self._filesystem)
        for table in ("images", "masks"):
            if self.commits:
                files = [self._path(getattr(record, table)) for record in self.commits]
                if not is_local(self.root):
                    files = [f"{self._filesystem.protocol[0]}://{file}" for file in files]
                connection.read_parquet(files).create_view(table)
            else:
                empty = self.arrow(table).to_table()
                connection.from_arrow(empty).create(table)
        return connection

    @cached_property
    def _filesystem(self) -> Any:
        return filesystem(self.root)[0]

    def _path(self, part: Part) -> str:
        return filesystem(join(self.root, part.file))[1]

    def _open(self, part: Part) -> pq.ParquetFile:
        uri = join(self.root, part.file)
        with translated(uri):
            return pq.ParquetFile(self._filesystem.open(self._path(part)), page_checksum_verification=True)

    def _mask_rows(self, record: CommitRecord, start: int, count: int) -> pa.Table:
        file = self._open(record.masks)
        groups, first, seen = [], None, 0
        for index in range(file.num_row_groups):
            rows = file.metadata.row_group(index).num_rows
            if seen < start + count and seen + rows > start:
                groups.append(index)
                first = seen if first is None else first
            seen += rows
        table = file.read_row_groups(groups).replace_schema_metadata()
        return table.slice(start - (first or 0), count)
