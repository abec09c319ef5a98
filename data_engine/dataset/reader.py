"""Reading a dataset: whole tables, image by image, one image by id, or SQL. Only committed files are ever opened."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pad
import pyarrow.parquet as pq
from fsspec import AbstractFileSystem
from rlemasklib import RLEMask

from data_engine.dataset.commits import PLAN_FILE, CommitRecord, Part, Totals, read_commits
from data_engine.dataset.committed_files import CommittedFiles, open_committed
from data_engine.dataset.duckdb_errors import said_by
from data_engine.dataset.duplicates import (
    DUPLICATES,
    MASK_DUPLICATES,
    DatasetState,
    DedupVersion,
    newest_version,
    read_table,
    read_version,
)
from data_engine.dataset.id_index import IdIndex
from data_engine.dataset.id_table import table_file
from data_engine.dataset.left_out import LeftOut
from data_engine.dataset.manifest import Manifest, read_manifest, read_manifest_commits
from data_engine.dataset.row_groups import RowGroups
from data_engine.dataset.schema import IMAGES, MASKS, REJECTS, check_version
from data_engine.errors import DatasetError
from data_engine.storage import filesystem, is_local, join, read_bytes, read_range, translated

if TYPE_CHECKING:
    import duckdb

READERS = 32  # files that are read at a time, where little is read of each: a store takes its time to answer

_SCHEMAS = {"images": IMAGES, "masks": MASKS, "rejects": REJECTS}
_REMEDY = "put it back from a copy; `data-engine audit` lists all files that are gone or damaged"


@dataclass(frozen=True, slots=True)
class DatasetImage:
    """An image and its masks."""

    row: dict[str, Any]  # its row of the images table
    masks: pa.Table  # its rows of the masks table, in order; fewer than the row says where duplicates are left out

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
    MaskDataset("masks/", deduplicated=True)                  # without what `data-engine dedup` leaves out
    """

    def __init__(self, root: str, deduplicated: bool | str = False) -> None:
        """deduplicated: leave out the duplicates of that version, or of the newest one (True): images, and where it was
        made with --masks, masks that are there twice in their image.

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
        return self._left_out.images if self._left_out is not None else frozenset()

    @property
    def duplicates(self) -> pa.Table:
        """The table of the chosen version, else of the newest one: schema DUPLICATES, empty where there is none."""
        version = self.dedup or newest_version(self.root)
        return read_table(self.root, version.duplicates, DUPLICATES) if version else DUPLICATES.empty_table()

    def __getitem__(self, image_id: str) -> DatasetImage:
        """One image by id. Reads its slice's rows of images, and only the row groups that hold its masks.

        The first time, the ids of all slices are read until it is found; of a dataset of many slices they are then
        kept on this machine. For more than a few images, `get_many` reads less.
        """
        if not isinstance(image_id, str):
            raise TypeError(f"{image_id!r} is no image id: a string; `rows` reads images by their places in a slice")
        return next(self.get_many([image_id]))

    def __contains__(self, image_id: object) -> bool:
        """Whether there is an image of this id, as `[]` would find it. Without this, `in` would read the dataset."""
        try:
            return isinstance(image_id, str) and bool(self[image_id].row)
        except KeyError:
            return False

    def get_many(self, image_ids: Iterable[str]) -> Iterator[DatasetImage]:
        """The images of these ids, each once, in the order of the dataset: each slice is read once.

        Raises KeyError for an id that is not there, before the first image comes.
        """
        wanted = set(image_ids)
        for image_id in wanted & self.left_out:
            raise KeyError(image_id)
        while wanted:
            whole = self._ids.whole
            for record, rows in self._ids.find(sorted(wanted)):
                for image in self.rows_at(record, rows):
                    if image.image_id in wanted:
                        wanted.remove(image.image_id)
                        yield image
            if wanted and whole:
                raise KeyError(min(wanted))
            if wanted:  # another id has the same hash
                self._ids.read_all()

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
                ready = pa.concat_tables([ready, batch]) if ready.num_rows else batch  # which may have more columns
            yield self._image(row, ready.slice(0, wanted))
            ready = ready.slice(wanted)

    def rows(self, record: CommitRecord, start: int, stop: int) -> Iterator[DatasetImage]:
        """The images `start` to `stop` of one committed slice, left-out ones too.

        Streams the row groups that hold their masks, and reads no others.
        """
        return self.rows_at(record, range(start, min(stop, record.images.rows)))

    def rows_at(self, record: CommitRecord, rows: Sequence[int]) -> Iterator[DatasetImage]:
        """The images of one committed slice at some rows, ascending; left-out ones too.

        Reads the row groups that hold their masks, and no others; holds those of one image at a time.
        """
        images = self._read(record.images)
        ends = np.cumsum(images["n_masks"].to_numpy(), dtype=np.int64)
        groups: RowGroups | None = None
        for number, row in zip(rows, images.take(pa.array(rows, pa.int64())).to_pylist(), strict=True):
            stop = int(ends[number])
            if not row["n_masks"]:
                yield DatasetImage(row, MASKS.empty_table())
                continue
            groups = groups or self._row_groups(record.masks)
            if stop > len(groups):
                raise DatasetError(f"{join(self.root, record.masks.file)} has fewer masks than its images say")
            with self._readable(record.masks):
                masks = groups.read(stop - row["n_masks"], stop)
            yield self._image(row, masks)

    def batches(self, part: Part, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """The rows of a committed file, a row group at a time. Raises DatasetError where it is gone or damaged."""
        file = self._open(part)
        for group in range(file.num_row_groups):  # iter_batches holds what it has read of all of them
            with self._readable(part):
                rows = file.read_row_group(group, columns and list(columns)).replace_schema_metadata()
            yield rows

    def image_ids(self, record: CommitRecord) -> list[str]:
        """Ids of the images of one committed slice, in order."""
        ids: list[str] = self._read(record.images, columns=["image_id"])["image_id"].to_pylist()
        return ids

    def images_by_slice(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        """Columns of the images of every committed slice, in order, left-out ones too. Reads many slices at a time."""
        names = list(columns)
        with ThreadPoolExecutor(READERS, thread_name_prefix="images") as pool:
            yield from pool.map(lambda record: self._read(record.images, names), self.commits)

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
        parts = [getattr(record, table) for record in self.commits]
        paths = [self._path(part) for part in parts if part is not None]
        schema = _SCHEMAS[table]
        if not paths:
            return pad.dataset(schema.empty_table())
        with self._scannable():
            rows = pad.dataset(paths, schema=schema, format="parquet", filesystem=self._files)
        return rows.filter(self._left_out.kept(table)) if self._left_out is not None else rows

    def duckdb(self) -> duckdb.DuckDBPyConnection:
        """A DuckDB connection with the views `images`, `masks`, `rejects`, `duplicates` and `mask_duplicates`.

        Of committed files only. The last two are of the chosen version of duplicates, else of the newest one.

        Raises DatasetError where DuckDB is not installed, and for a file that is gone or that DuckDB cannot read.
        """
        try:
            import duckdb
        except ImportError:
            raise DatasetError("SQL needs duckdb: pip install 'data-engine[sql]'") from None
        connection = duckdb.connect()
        version = self.dedup or newest_version(self.root)
        if not is_local(self.root):
            connection.register_filesystem(self._files)
        parts = {
            "duplicates": [version.duplicates] if version else [],
            "mask_duplicates": [version.mask_duplicates] if version and version.mask_duplicates else [],
            "images": [record.images for record in self.commits],
            "masks": [record.masks for record in self.commits],
            "rejects": [record.rejects for record in self.commits if record.rejects],
        }
        of_version = {"duplicates": DUPLICATES, "mask_duplicates": MASK_DUPLICATES}
        for table, schema in {**of_version, **_SCHEMAS}.items():
            if not parts[table]:
                connection.from_arrow(schema.empty_table()).create(table)
                continue
            try:
                rows = connection.read_parquet([self._duckdb_path(part) for part in parts[table]])
            except duckdb.Error as error:
                raise self._unreadable(parts[table], error, table) from None
            if self.dedup is not None and table not in of_version:
                rows = rows.filter("image_id not in (select image_id from duplicates where not keep)")
            if self.dedup is not None and self.dedup.mask_duplicates is not None and table == "masks":
                rows = rows.filter("(image_id, mask_id) not in (select (image_id, mask_id) from mask_duplicates)")
            rows.create_view(table)
        return connection

    def _unreadable(self, parts: list[Part], error: Exception, table: str) -> DatasetError:
        """What DuckDB said of one of the files, as an error that says what there is to do."""
        uri = next((join(self.root, part.file) for part in parts if part.file in str(error)), self.root)
        remedy = "make a new version with `data-engine dedup`" if "duplicates" in table else _REMEDY
        if "No files found" in str(error) or "FileNotFoundError" in str(error):
            return DatasetError(_gone(uri, remedy))
        return DatasetError(f"{uri} cannot be read by DuckDB ({said_by(error)}): {remedy}")

    @cached_property
    def _left_out(self) -> LeftOut | None:
        return LeftOut(self.root, self.dedup) if self.dedup is not None else None

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
        if deduplicated is True:
            now = DatasetState.of(fingerprint, self.complete, self.commits)
            if version.dataset.commits_sha256 != now.commits_sha256:
                raise DatasetError(
                    f"{self.root} has grown since version {version.version!r} of its duplicates: "
                    f"{version.dataset.images:,} of {now.images:,} images were compared; run "
                    f"`data-engine dedup {self.root}`, or name the version"
                )
        return version

    @cached_property
    def _ids(self) -> IdIndex:
        return IdIndex(self.commits, self.image_ids, table_file(self.root))

    @cached_property
    def _files(self) -> AbstractFileSystem:
        if is_local(self.root):
            return filesystem(self.root)[0]
        return CommittedFiles.of(self.root, [part for record in self.commits for part in record.parts])

    def _path(self, part: Part) -> str:
        return filesystem(join(self.root, part.file))[1]

    def _duckdb_path(self, part: Part) -> str:
        return self._path(part) if is_local(self.root) else join(self.root, part.file)

    def _open(self, part: Part) -> pq.ParquetFile:
        with self._readable(part):
            return open_committed(self.root, part)

    def _read(self, part: Part, columns: list[str] | None = None) -> pa.Table:
        """A file of images, which is small: in one request, tried again where a store fails for a while."""
        with self._readable(part):
            data = read_range(join(self.root, part.file), 0, part.size)
            return pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True).read(columns=columns)

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

    def _image(self, row: dict[str, Any], masks: pa.Table) -> DatasetImage:
        if self._left_out is not None:
            masks = self._left_out.masks_kept(row["image_id"], masks)
        return DatasetImage(row, masks)

    def _row_groups(self, part: Part) -> RowGroups:
        file = self._open(part)
        with self._readable(part):
            return RowGroups(file)


def _gone(uri: str, remedy: str = _REMEDY) -> str:
    return f"{uri} is gone, though it is committed: {remedy}"
