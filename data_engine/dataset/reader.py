"""Reading a dataset: whole tables, image by image, one image by id, or SQL. Only committed files are ever opened."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
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
from data_engine.dataset.duplicates import (
    DUPLICATES,
    DatasetState,
    DedupVersion,
    newest_version,
    read_table,
    read_version,
)
from data_engine.dataset.manifest import Manifest, read_manifest, read_manifest_commits
from data_engine.dataset.schema import IMAGES, MASKS, REJECTS, check_version
from data_engine.errors import DatasetError
from data_engine.retry import retried
from data_engine.storage import filesystem, is_local, join, read_bytes, translated

if TYPE_CHECKING:
    import duckdb

_REMEDY = "put it back from a copy; `data-engine audit` lists all files that are gone or damaged"


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
    MaskDataset("masks/", deduplicated=True)                  # without the images that `data-engine dedup` leaves out
    """

    def __init__(self, root: str, deduplicated: bool | str = False) -> None:
        """deduplicated: leave out the duplicates of that version, or of the newest one (True).

        Raises DatasetError when there is no dataset at `root`, or one that this code cannot read; when there is no such
        version of duplicates, when it is of another dataset, or when the newest one is older than the dataset.
        """
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
        self.dedup: DedupVersion | None = self._dedup(deduplicated) if deduplicated is not False else None

    @cached_property
    def commits(self) -> list[CommitRecord]:
        """The committed slices, as they were when first asked for."""
        return read_manifest_commits(self.root, self.manifest) if self.manifest else read_commits(self.root)

    @property
    def complete(self) -> bool:
        return self.manifest is not None

    @cached_property
    def totals(self) -> Totals:
        """Counts over all slices, duplicates included."""
        return self.manifest.totals if self.manifest else Totals.sum(record.totals for record in self.commits)

    def __len__(self) -> int:
        """Images, failed ones included."""
        return self.totals.images - len(self.left_out)

    def __iter__(self) -> Iterator[DatasetImage]:
        for record in self.commits:
            for image in self.slice(record):
                if image.image_id not in self.left_out:
                    yield image

    @cached_property
    def left_out(self) -> frozenset[str]:
        """Ids of the images that the chosen version of duplicates leaves out. About 100 bytes each in memory."""
        return frozenset(self._left_out_ids.to_pylist())

    @property
    def duplicates(self) -> pa.Table:
        """The table of the chosen version, else of the newest one: schema DUPLICATES, empty where there is none."""
        version = self.dedup or newest_version(self.root)
        return read_table(self.root, version.duplicates, DUPLICATES) if version else DUPLICATES.empty_table()

    def __getitem__(self, image_id: str) -> DatasetImage:
        """One image by id. Reads the id column until it is found, then only the row groups that hold its masks."""
        if image_id in self.left_out:
            raise KeyError(image_id)
        for record in self.commits:
            ids = self._read(record.images, columns=["image_id"])["image_id"]
            position = pc.index(ids, image_id).as_py()
            if position >= 0:
                return next(self.rows(record, position, position + 1))
        raise KeyError(image_id)

    def slice(self, record: CommitRecord) -> Iterator[DatasetImage]:
        """The images of one committed slice, in order, left-out ones too; masks streamed row group by row group."""
        batches = self.batches(record.masks)
        ready: pa.Table = MASKS.empty_table()
        for row in self._read(record.images).to_pylist():
            wanted = row["n_masks"]
            while ready.num_rows < wanted:
                batch = next(batches, None)
                if batch is None:
                    raise DatasetError(f"{join(self.root, record.masks.file)} has fewer masks than its images say")
                ready = pa.concat_tables([ready, batch])
            yield DatasetImage(row, ready.slice(0, wanted))
            ready = ready.slice(wanted)

    def rows(self, record: CommitRecord, start: int, stop: int) -> Iterator[DatasetImage]:
        """The images `start` to `stop` of one committed slice, left-out ones too.

        Reads only the row groups that hold their masks, and these at once: for a few images. `slice` streams.
        """
        images = self._read(record.images)
        counts = images["n_masks"].to_numpy()
        masks = self._mask_rows(record, int(counts[:start].sum()), int(counts[start:stop].sum()))
        first = 0
        for row in images.slice(start, stop - start).to_pylist():
            yield DatasetImage(row, masks.slice(first, row["n_masks"]))
            first += row["n_masks"]

    def batches(self, part: Part) -> Iterator[pa.Table]:
        """The rows of a committed file, some thousands at a time. Raises DatasetError where it is gone or damaged."""
        with self._readable(part):
            batches = self._open(part).iter_batches()
        while True:
            with self._readable(part):
                batch = next(batches, None)
            if batch is None:
                return
            yield pa.Table.from_batches([batch]).replace_schema_metadata()

    def image_ids(self, record: CommitRecord) -> list[str]:
        """Ids of the images of one committed slice, in order."""

        def read() -> list[str]:
            ids: list[str] = self._read(record.images, columns=["image_id"])["image_id"].to_pylist()
            return ids

        return retried(read)

    def images(self, columns: Sequence[str] | None = None, filter: pc.Expression | None = None) -> pa.Table:
        """The images table, or some columns and rows of it."""
        with self._scannable():
            return self.arrow("images").to_table(columns=list(columns) if columns else None, filter=filter)

    def masks(self, columns: Sequence[str] | None = None, filter: pc.Expression | None = None) -> pa.Table:
        """The masks table, or some columns and rows of it."""
        with self._scannable():
            return self.arrow("masks").to_table(columns=list(columns) if columns else None, filter=filter)

    def scan(self, table: str, columns: Sequence[str], filter: pc.Expression | None = None) -> Iterator[pa.RecordBatch]:
        """Columns of "images", "masks" or "rejects", streamed. Raises DatasetError where a file is gone or damaged."""
        with self._scannable():
            batches = iter(self.arrow(table).to_batches(columns=list(columns), filter=filter))
        while True:
            with self._scannable():
                batch = next(batches, None)
            if batch is None:
                return
            yield batch

    def arrow(self, table: str) -> pad.Dataset:
        """ "images", "masks" or "rejects" as an Arrow dataset over exactly the committed files: scans stream."""
        schema = {"images": IMAGES, "masks": MASKS, "rejects": REJECTS}[table]
        parts = [getattr(record, table) for record in self.commits]
        paths = [self._path(part) for part in parts if part is not None]
        if not paths:
            return pad.dataset(schema.empty_table())
        with self._scannable():
            rows = pad.dataset(paths, schema=schema, format="parquet", filesystem=self._filesystem)
        if self.dedup is None:
            return rows
        return rows.filter(~pc.field("image_id").isin(self._left_out_ids))

    def duckdb(self) -> duckdb.DuckDBPyConnection:
        """A DuckDB connection with the views `images`, `masks`, `rejects` and `duplicates`: committed files only.

        Raises DatasetError where DuckDB is not installed, and for a file that is gone or that DuckDB cannot read.
        """
        try:
            import duckdb
        except ImportError:
            raise DatasetError("SQL needs duckdb: pip install 'data-engine[sql]'") from None
        connection = duckdb.connect()
        if not is_local(self.root):
            connection.register_filesystem(self._filesystem)
        version = self.dedup or newest_version(self.root)
        parts = {
            "duplicates": [version.duplicates] if version else [],
            "images": [record.images for record in self.commits],
            "masks": [record.masks for record in self.commits],
            "rejects": [record.rejects for record in self.commits if record.rejects],
        }
        schemas = {"duplicates": DUPLICATES, "images": IMAGES, "masks": MASKS, "rejects": REJECTS}
        for table, schema in schemas.items():
            if not parts[table]:
                connection.from_arrow(schema.empty_table()).create(table)
                continue
            try:
                rows = connection.read_parquet([self._duckdb_path(part) for part in parts[table]])
            except duckdb.Error as error:
                raise self._unreadable(parts[table], str(error), table) from None
            if self.dedup is not None and table != "duplicates":
                rows = rows.filter("image_id not in (select image_id from duplicates where not keep)")
            rows.create_view(table)
        return connection

    def _unreadable(self, parts: list[Part], said: str, table: str) -> DatasetError:
        """What DuckDB said of one of the files, as an error that says what there is to do."""
        uri = next((join(self.root, part.file) for part in parts if part.file in said), self.root)
        remedy = "make a new version with `data-engine dedup`" if table == "duplicates" else _REMEDY
        if "No files found" in said:
            return DatasetError(_gone(uri, remedy))
        return DatasetError(f"{uri} cannot be read by DuckDB ({said.strip().splitlines()[0]}): {remedy}")

    @cached_property
    def _left_out_ids(self) -> pa.Array:
        if self.dedup is None:
            return pa.array([], pa.string())
        table = read_table(self.root, self.dedup.duplicates, DUPLICATES)
        return table.filter(pc.invert(table["keep"]))["image_id"].combine_chunks()  # without chunks it has no type

    def _dedup(self, deduplicated: bool | str) -> DedupVersion:
        """The version that is meant. A name is taken at its word; the newest one must know all images."""
        if isinstance(deduplicated, str):
            version: DedupVersion | None = read_version(self.root, deduplicated)
        else:
            version = newest_version(self.root)
        if version is None:
            raise DatasetError(f"{self.root} has no duplicates found yet: run `data-engine dedup {self.root}`")
        fingerprint = str(self.plan.get("fingerprint", ""))
        if version.dataset.fingerprint != fingerprint:
            raise DatasetError(f"{self.root}: its version {version.version!r} of duplicates is of another dataset")
        now = DatasetState.of(fingerprint, self.complete, self.commits)
        if deduplicated is True and version.dataset.commits_sha256 != now.commits_sha256:
            raise DatasetError(
                f"{self.root} has grown since version {version.version!r} of its duplicates: "
                f"{version.dataset.images:,} of {now.images:,} images were compared; run "
                f"`data-engine dedup {self.root}`, or name the version"
            )
        return version

    @cached_property
    def _filesystem(self) -> Any:
        return filesystem(self.root)[0]

    def _path(self, part: Part) -> str:
        return filesystem(join(self.root, part.file))[1]

    def _duckdb_path(self, part: Part) -> str:
        path = self._path(part)
        return path if is_local(self.root) else f"{self._filesystem.protocol[0]}://{path}"

    def _open(self, part: Part) -> pq.ParquetFile:
        with self._readable(part):
            return pq.ParquetFile(self._filesystem.open(self._path(part)), page_checksum_verification=True)

    def _read(self, part: Part, columns: list[str] | None = None) -> pa.Table:
        with self._readable(part):
            return self._open(part).read(columns=columns)

    @contextmanager
    def _readable(self, part: Part) -> Iterator[None]:
        """Around reading a committed file: an error names it, and DatasetError says what there is to do."""
        uri = join(self.root, part.file)
        try:
            with translated(uri):
                yield
        except FileNotFoundError:
            raise DatasetError(_gone(uri)) from None
        except pa.ArrowInvalid as error:
            raise DatasetError(f"{uri} is damaged ({error}): {_REMEDY}") from None

    @contextmanager
    def _scannable(self) -> Iterator[None]:
        """As `_readable`, around Arrow's scans over all files; it names the file itself."""
        try:
            with translated(self.root):
                yield
        except FileNotFoundError as error:
            raise DatasetError(_gone(error.filename or str(error))) from None
        except pa.ArrowInvalid as error:
            if "Parquet" not in str(error):  # a column that is none, or a filter
                raise
            raise DatasetError(f"a committed file is damaged ({error}): {_REMEDY}") from None

    def _mask_rows(self, record: CommitRecord, start: int, count: int) -> pa.Table:
        """Rows `start` to `start + count` of the masks of a slice."""
        file = self._open(record.masks)
        groups, first, seen = [], None, 0
        for index in range(file.num_row_groups):
            rows = file.metadata.row_group(index).num_rows
            if seen < start + count and seen + rows > start:
                groups.append(index)
                first = seen if first is None else first
            seen += rows
        with self._readable(record.masks):
            table = file.read_row_groups(groups).replace_schema_metadata()
        return table.slice(start - (first or 0), count)


def _gone(uri: str, remedy: str = _REMEDY) -> str:
    return f"{uri} is gone, though it is committed: {remedy}"
