"""What lists, sorts and searches need of every image: small columns, read slice by slice and kept.

Run lengths stay unread. A slice never changes once committed, so a growing dataset only adds some.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from threading import Lock, Thread
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data_engine.dataset.commits import CommitRecord, Part
from data_engine.dataset.committed_files import open_committed
from data_engine.dataset.id_index import IdIndex
from data_engine.dataset.id_table import table_file
from data_engine.errors import DatasetError
from data_engine.storage import join, translated

_READERS = 4
_REMEDY = "`data-engine audit` says what is wrong"


@dataclass(frozen=True, slots=True)
class SliceIndex:
    """The images of one or more slices: N entries in order. Means are over an image's masks, NaN without any."""

    ids: pa.ChunkedArray  # N strings
    errors: pa.ChunkedArray  # N strings: why an image failed, null for those that did not
    widths: np.ndarray  # N int32, 0 where it is not known
    heights: np.ndarray  # N int32
    masks: np.ndarray  # N int64: how many
    predicted_iou: np.ndarray  # N float32, mean
    stability: np.ndarray  # N float32, mean
    area: np.ndarray  # N float32, mean share of the image

    def __len__(self) -> int:
        return len(self.masks)

    @classmethod
    def join(cls, parts: Sequence[SliceIndex]) -> SliceIndex:
        def joined(name: str) -> Any:
            values = [getattr(part, name) for part in parts]
            if values and isinstance(values[0], np.ndarray):
                return np.concatenate(values)
            return pa.chunked_array([chunk for value in values for chunk in value.chunks], pa.string())

        if not parts:
            none = pa.chunked_array([], pa.string())
            return cls(none, none, *(np.empty(0, np.float32) for _ in range(len(fields(cls)) - 2)))
        return cls(*(joined(field.name) for field in fields(cls)))


def open_part(root: str, part: Part) -> pq.ParquetFile:
    """A committed file. Raises StorageError and FileNotFoundError."""
    with translated(join(root, part.file)):
        return open_committed(root, part)


def read_slice(root: str, record: CommitRecord) -> SliceIndex:
    """The index of one committed slice. Raises DatasetError for a damaged file."""
    try:
        return _read_slice(root, record)
    except pa.ArrowException as error:
        raise DatasetError(f"{join(root, record.file)} names a damaged file ({error}); {_REMEDY}") from None


def _read_slice(root: str, record: CommitRecord) -> SliceIndex:
    names = ["image_id", "width", "height", "n_masks", "error_type"]
    with open_part(root, record.images) as file:
        images = file.read(columns=names)
    counts = images["n_masks"].to_numpy().astype(np.int64)
    widths, heights = (pc.fill_null(images[name], 0).to_numpy() for name in ("width", "height"))
    means = _means(root, record, counts)
    pixels = np.maximum(widths.astype(np.float32) * heights, 1)
    return SliceIndex(
        ids=images["image_id"],
        errors=images["error_type"],
        widths=widths,
        heights=heights,
        masks=counts,
        predicted_iou=means["predicted_iou"],
        stability=means["stability_score"],
        area=means["area"] / pixels,
    )


def _means(root: str, record: CommitRecord, counts: np.ndarray) -> dict[str, np.ndarray]:
    """The mean over each image's masks, N float32. The masks of an image lie together, in the order of the images."""
    names = ["predicted_iou", "stability_score", "area"]
    means = {name: np.full(len(counts), np.nan, np.float32) for name in names}
    some = counts > 0
    if some.any():
        with open_part(root, record.masks) as file:
            masks = file.read(columns=names)
        starts = (np.cumsum(counts) - counts)[some]
        for name in names:
            sums = np.add.reduceat(masks[name].to_numpy().astype(np.float64), starts)
            means[name][some] = sums / counts[some]
    return means


class ImageIndex:
    """The slices of a dataset as they stand at one moment, each read when it is first needed."""

    def __init__(
        self,
        root: str,
        records: Sequence[CommitRecord],
        read_ids: Callable[[CommitRecord], list[str]],
        known: dict[str, SliceIndex] | None = None,
    ) -> None:
        """read_ids: of a slice, in order. known: slices read before, by the file of their record; it is added to."""
        self.root = root
        self.records = list(records)
        self._numbers = {record.file: number for number, record in enumerate(self.records)}
        self._ids = IdIndex(self.records, read_ids, table_file(root))
        self.starts = np.cumsum([0, *(record.totals.images for record in self.records)])
        self.known: dict[str, SliceIndex] = {} if known is None else known
        self._all: SliceIndex | None = None
        self._lock = Lock()
        self._loader: Thread | None = None
        self._failure: Exception | None = None

    def __len__(self) -> int:
        return int(self.starts[-1])

    def slice(self, number: int) -> SliceIndex:
        """The index of record `number`."""
        record = self.records[number]
        found = self.known.get(record.file)
        if found is None:
            found = self.known[record.file] = read_slice(self.root, record)
        return found

    def locate(self, position: int) -> tuple[int, int]:
        """Position of an image in the dataset -> (number of its record, row in that slice)."""
        number = int(np.searchsorted(self.starts, position, side="right")) - 1
        return number, position - int(self.starts[number])

    def read_all(self) -> SliceIndex:
        """Every slice, joined."""
        if self._all is None:
            with ThreadPoolExecutor(_READERS, thread_name_prefix="index") as pool:
                parts = list(pool.map(self.slice, range(len(self.records))))
            self._all = SliceIndex.join(parts)
        return self._all

    def all_or_start(self, patience: float) -> SliceIndex | None:
        """Every slice, joined, or None if that takes longer than `patience` seconds: it then goes on behind."""
        if self._all is None:
            with self._lock:
                if self._loader is None:
                    self._loader = Thread(target=self._load, name="index", daemon=True)
                    self._loader.start()
            self._loader.join(patience)
            if self._failure is not None:
                failure, self._failure, self._loader = self._failure, None, None
                raise failure
        return self._all

    @property
    def progress(self) -> tuple[int, int]:
        """(slices read, slices)"""
        return sum(record.file in self.known for record in self.records), len(self.records)

    def find(self, image_id: str, hint: int | None = None, likely: Collection[str] = ()) -> int:
        """The position of an image; `hint` is looked at first, then the `likely` shards. Raises KeyError."""
        if hint is not None and 0 <= hint < len(self):
            number, row = self.locate(hint)
            if self.slice(number).ids[row].as_py() == image_id:
                return hint
        for number, record in enumerate(self.records):
            row = pc.index(self.slice(number).ids, image_id).as_py() if record.shard in likely else -1
            if row >= 0:
                return int(self.starts[number]) + row
        for position in self.positions([image_id]).tolist():
            number, row = self.locate(position)
            if self.slice(number).ids[row].as_py() == image_id:
                return int(position)
        raise KeyError(image_id)

    def positions(self, ids: Collection[str]) -> np.ndarray:
        """Of those of these images that are here, int64, ascending; once in a million years of another one, too."""
        try:
            places = self._ids.find(ids)
        except KeyError:
            each = [self.positions([image_id]) for image_id in ids] if len(ids) > 1 else []
            return np.unique(np.concatenate([np.empty(0, np.int64), *each]))
        found = [int(self.starts[self._numbers[record.file]]) + np.array(rows, np.int64) for record, rows in places]
        return np.concatenate([np.empty(0, np.int64), *found])

    def _load(self) -> None:
        try:
            self.read_all()
        except Exception as error:  # whoever asks next is told
            self._failure = error
