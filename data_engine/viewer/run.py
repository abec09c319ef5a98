"""A dataset as the viewer needs it: what it is, its images, one image's masks, its originals."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from threading import Lock
from typing import Any

import numpy as np
import pyarrow as pa

from data_engine.corrections.click_model import ClickModel
from data_engine.dataset.commits import CommitRecord, Totals, read_commits
from data_engine.dataset.reader import MaskDataset
from data_engine.dataset.schema import MASKS
from data_engine.errors import DatasetError
from data_engine.images.decode import decode
from data_engine.pipeline.originals import relinked
from data_engine.pipeline.plan import read_plan
from data_engine.viewer.byte_cache import ByteCache
from data_engine.viewer.index import ImageIndex, open_part
from data_engine.viewer.order import Query, ordered
from data_engine.viewer.originals import Missing, Originals
from data_engine.viewer.own_order import OwnOrder, as_stored
from data_engine.viewer.pictures import picture

_PATIENCE = 0.5  # seconds that a list waits for the index before it says how far that is
_KEPT_IMAGES = 32  # whose masks are corrected: each click asks for the image again
_KEPT_GROUPS = 6  # row groups of masks, some 10,000 rows each
_PICTURE_BYTES = 64 << 20
_SHOWN = [name for name in MASKS.names if name not in ("image_id", "height", "width")]
_DIGITS = {"predicted_iou": 5, "stability_score": 5, "point_x": 2, "point_y": 2, "label_score": 5}


class ViewedRun:
    """One dataset. Safe among threads; `refresh` takes in what was committed since."""

    def __init__(self, root: str, input_uri: str | None = None, model: str | None = None, device: str = "auto") -> None:
        """input_uri: the input with its links signed anew, where they are signed. model, device: what answers clicks,
        by default the dataset's own model. Raises DatasetError, UsageError.
        """
        plan = read_plan(root)
        if plan is None:
            raise DatasetError(f"no dataset at {root}: it has no _plan/job.json")
        self.root = root
        self.plan = plan
        dataset = MaskDataset(root)
        self.complete = dataset.complete
        self.index = ImageIndex(root, dataset.commits, dataset.image_ids)
        self.originals = Originals(relinked(plan, input_uri))
        offset = plan.config.get("masks", {}).get("stability_score_offset", 1.0)
        self.model = ClickModel(
            model or plan.model_name, device, None if model else plan.model_sha256, stability_offset=offset
        )
        self._groups: OrderedDict[tuple[str, int], pa.Table] = OrderedDict()
        self._lock = Lock()
        self._pictures = ByteCache(_PICTURE_BYTES)
        self._images: OrderedDict[tuple[str, int], dict[str, Any]] = OrderedDict()
        self._orders: dict[str, tuple[ImageIndex, OwnOrder]] = {}
        self._places: tuple[ImageIndex | None, frozenset[str], np.ndarray] = (None, frozenset(), np.empty(0, bool))

    def refresh(self) -> None:
        """Takes in new commits; what is known is not read again."""
        if self.complete:
            return
        dataset = MaskDataset(self.root)
        known = {record.file: record for record in self.index.records}
        records = dataset.commits if dataset.complete else read_commits(self.root, known)
        if len(records) != len(self.index.records):
            self.index = ImageIndex(self.root, records, dataset.image_ids, self.index.known)
        self.complete = dataset.complete

    @property
    def totals(self) -> Totals:
        return Totals.sum(record.totals for record in self.index.records)

    def facts(self) -> dict[str, Any]:
        """What the page's heading says."""
        totals = self.totals
        return {
            "root": self.root,
            "input": self.plan.input,
            "model": self.plan.model_name,
            "model_sha256": self.plan.model_sha256,
            "images": totals.images,
            "planned": self.plan.images,
            "failed": totals.failed,
            "masks": totals.masks,
            "errors": totals.errors,
            "complete": self.complete,
            "settings": self.plan.config.get("masks", {}),
        }

    def page(
        self, query: Query, offset: int, limit: int, other: ViewedRun | None = None, around: str | None = None
    ) -> dict[str, Any]:
        """Some images of a list, as columns; {"reading": [slices read, slices]} while the index is being read.

        other: the run beside it, for the sort "difference". around: an image; instead of `offset`, the page that it is
        on is given, with its place in the list as "rank" (null if it is not in it).
        """
        index = self.index
        if query.as_stored:
            wanted = None
            total = len(index)
        else:
            compared = other.index if other is not None and query.sort == "difference" else index
            images, beside = index.all_or_start(_PATIENCE), compared.all_or_start(_PATIENCE)
            if images is None or beside is None:
                return {"reading": list((index if images is None else compared).progress)}
            wanted = ordered(images, query, beside if other is not None else None)
            total = len(wanted)
        rank = self._rank(index, wanted, around) if around is not None else None
        if rank is not None:
            offset = rank - rank % limit
        end = min(offset + limit, total)
        positions = np.arange(offset, end) if wanted is None else wanted[offset:end]
        return {"total": total, "offset": offset, "rank": rank, **_columns(index, positions)}

    def find(self, image_id: str, hint: int | None = None) -> tuple[CommitRecord, int, int]:
        """An image's commit record, its row in that slice, and its position in the dataset. Raises KeyError."""
        index = self.index
        position = self._position(index, image_id, hint)
        number, row = index.locate(position)
        return index.records[number], row, position

    def next_image(self, position: int, step: int) -> int | None:
        """The position of the next masked image after `position` (before it: step -1), or None."""
        return self._first_masked(self.index, range(position + step, len(self.index) if step > 0 else -1, step))

    def next_left(self, position: int | None, left_out: frozenset[str], who: str | None = None) -> int | None:
        """The next masked image after `position` (None: of all), and round, that is not left out; None where none is.

        who: in this person's own order, instead of that of the dataset.
        """
        index = self.index
        out = self._places_of(index, left_out)
        order = as_stored(len(index), position) if who is None else self._order_of(index, who).after(position)
        return self._first_masked(index, (each for each in order if not out[each]))

    def _first_masked(self, index: ImageIndex, positions: Iterable[int]) -> int | None:
        for position in positions:
            number, row = index.locate(position)
            if index.slice(number).errors[row].as_py() is None:
                return position
        return None

    def _places_of(self, index: ImageIndex, ids: frozenset[str]) -> np.ndarray:
        """Of each position, whether it is one of these images: bool."""
        with self._lock:
            known, before, places = self._places
        if known is not index:
            before, places = frozenset(), np.zeros(len(index), bool)
        if ids != before:
            places = places.copy()
            places[index.positions(before - ids)] = False
            places[index.positions(ids - before)] = True
            with self._lock:
                self._places = (index, ids, places)
        return places

    def _order_of(self, index: ImageIndex, who: str) -> OwnOrder:
        with self._lock:
            known = self._orders.get(who)
        if known is None or known[0] is not index:
            known = (index, OwnOrder(index.records, who))
            with self._lock:
                self._orders[who] = known
        return known[1]

    def image_id(self, position: int) -> str:
        """Of the image at a position of the dataset."""
        number, row = self.index.locate(position)
        return str(self.index.slice(number).ids[row].as_py())

    def image(self, image_id: str, hint: int | None = None) -> dict[str, Any]:
        """An image's row, position and mask columns, as JSON takes them. Raises KeyError."""
        index = self.index
        position = self._position(index, image_id, hint)
        number, row = index.locate(position)
        record = index.records[number]
        with self._lock:
            known = self._images.get((record.file, row))
        if known is None:
            known = self._image(record, row, index.slice(number).masks)
            with self._lock:
                self._images[record.file, row] = known
                if len(self._images) > _KEPT_IMAGES:
                    self._images.popitem(last=False)
        return {**known, "position": position}

    def _image(self, record: CommitRecord, row: int, counts: np.ndarray) -> dict[str, Any]:
        with open_part(self.root, record.images) as file:
            fields = file.read().slice(row, 1).to_pylist()[0]
        masks = self._masks(record, int(counts[:row].sum()), int(counts[row]))
        digest = fields.pop("sha256")
        phash = fields.pop("phash")
        return {
            **fields,
            "sha256": None if digest is None else digest.hex(),
            "phash": None if phash is None else f"{phash:016x}",
            "masks": {name: _listed(masks, name) for name in _SHOWN},
        }

    def picture(self, image_id: str, side: int, hint: int | None = None) -> bytes | Missing:
        """A JPEG of the original, its longer side at most `side` (0: as it is). Raises KeyError, ImageError."""
        index = self.index
        number, row = index.locate(self._position(index, image_id, hint))
        record = index.records[number]
        key = (record.file, row, side)
        kept = self._pictures.get(key)
        if kept is not None:
            return kept
        data = self._original(index, number, row)
        if isinstance(data, Missing):
            return data
        shown = picture(data, self.originals.settings, side)
        self._pictures.put(key, shown)
        return shown

    def pixels(self, image_id: str, hint: int | None = None) -> np.ndarray | Missing:
        """The original as it was masked, HxWx3 uint8. Raises KeyError, ImageError."""
        index = self.index
        data = self._original(index, *index.locate(self._position(index, image_id, hint)))
        return data if isinstance(data, Missing) else decode(data, self.originals.settings)

    def _original(self, index: ImageIndex, number: int, row: int) -> bytes | Missing:
        record = index.records[number]
        with open_part(self.root, record.images) as file:
            columns = file.read(columns=["uri", "sha256"])
        uri, digest = (columns[name][row].as_py() for name in ("uri", "sha256"))
        return self.originals.read(index.records, number, row, uri, digest)

    def _position(self, index: ImageIndex, image_id: str, hint: int | None = None) -> int:
        """Where an image is. Its id tells the tar that it is in, so that other slices need not be read."""
        likely = (
            {
                planned.id
                for planned in self.plan.shards
                if (planned.shard.prefix and image_id.startswith(f"{planned.shard.prefix}/"))
                or any(file.image_id == image_id for file in planned.shard.files)
            }
            if hint is None
            else set()
        )
        return index.find(image_id, hint, likely)

    def _rank(self, index: ImageIndex, wanted: np.ndarray | None, image_id: str) -> int | None:
        """The place of an image in a list of positions (None: of all), or None."""
        try:
            position = self._position(index, image_id)
        except KeyError:
            return None
        if wanted is None:
            return position
        places = np.flatnonzero(wanted == position)
        return int(places[0]) if len(places) else None

    def _masks(self, record: CommitRecord, start: int, count: int) -> pa.Table:
        """Rows `start` to `start + count` of the masks of a slice; only the row groups that hold them are read."""
        tables = [MASKS.empty_table()]
        with open_part(self.root, record.masks) as file:
            seen = 0
            for group in range(file.num_row_groups):
                rows = file.metadata.row_group(group).num_rows
                if seen < start + count and seen + rows > start:
                    first = max(0, start - seen)
                    last = min(rows, start + count - seen)
                    tables.append(self._group(record, group, file).slice(first, last - first))
                seen += rows
        table = pa.concat_tables([table.replace_schema_metadata() for table in tables])
        if table.num_rows != count:
            raise DatasetError(f"{record.masks.file} has fewer masks than its images say")
        return table

    def _group(self, record: CommitRecord, group: int, file: Any) -> pa.Table:
        key = (record.masks.file, group)
        with self._lock:
            if key in self._groups:
                self._groups.move_to_end(key)
                return self._groups[key]
        table = file.read_row_group(group)
        with self._lock:
            self._groups[key] = table
            if len(self._groups) > _KEPT_GROUPS:
                self._groups.popitem(last=False)
        return table


def _columns(index: ImageIndex, positions: np.ndarray) -> dict[str, list[Any]]:
    """The columns of a list, for some positions."""
    rows: list[dict[str, Any]] = []
    for position in positions.tolist():
        number, row = index.locate(position)
        part = index.slice(number)
        rows.append(
            {
                "position": position,
                "id": part.ids[row].as_py(),
                "error": part.errors[row].as_py(),
                "width": int(part.widths[row]),
                "height": int(part.heights[row]),
                "masks": int(part.masks[row]),
                **{name: _number(getattr(part, name)[row]) for name in ("predicted_iou", "stability", "area")},
            }
        )
    names = ["position", "id", "error", "width", "height", "masks", "predicted_iou", "stability", "area"]
    return {name: [row[name] for row in rows] for name in names}


def _number(value: np.floating[Any]) -> float | None:
    return None if np.isnan(value) else round(float(value), 5)


def _listed(masks: pa.Table, name: str) -> list[Any]:
    if name in _DIGITS:
        return [None if value is None else round(value, _DIGITS[name]) for value in masks[name].to_pylist()]
    return list(masks[name].to_pylist())
