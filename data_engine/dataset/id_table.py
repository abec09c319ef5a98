"""A hash and a row for every id of some slices: sorted arrays, and the file on this machine that keeps them."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import uuid
import zlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from data_engine.storage import is_local, local_path

log = logging.getLogger(__name__)

_FACTS = b"data_engine"


@dataclass(frozen=True, slots=True)
class IdTable:
    """N ids of S slices. Memory: 12 bytes an id, or the pages that are touched of the file they were loaded from."""

    hashes: np.ndarray  # N uint64, sorted
    rows: np.ndarray  # N uint32, uint64 beyond 2^32: numbers of the ids, counted over the slices in their order here
    slices: tuple[str, ...]  # S: sha256 of each one's file of images
    firsts: np.ndarray  # S + 1 int64: the number of the first row of each, and N

    @classmethod
    def empty(cls) -> IdTable:
        return cls(np.empty(0, np.uint64), np.empty(0, np.uint32), (), np.zeros(1, np.int64))

    def has(self, hashes: np.ndarray) -> np.ndarray:
        """Of each hash, whether it is there: bool."""
        return np.searchsorted(self.hashes, hashes, "right") > np.searchsorted(self.hashes, hashes, "left")

    def places(self, hashes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(number of the slice, row in it) of every id that has one of these hashes, ascending; int64."""
        starts, stops = (np.searchsorted(self.hashes, hashes, side) for side in ("left", "right"))
        found = [self.rows[start:stop] for start, stop in zip(starts, stops, strict=True)]
        rows = np.unique(np.concatenate([self.rows[:0], *found])).astype(np.int64)
        slices = np.searchsorted(self.firsts, rows, "right") - 1
        return slices, rows - self.firsts[slices]

    def extended(self, found: Sequence[tuple[str, np.ndarray]]) -> IdTable:
        """found: (sha256, hashes of its ids in their order) of slices that are not among these."""
        firsts = self.firsts[-1] + np.cumsum([0, *(len(hashes) for _, hashes in found)])
        kind = np.uint32 if firsts[-1] < 2**32 else np.uint64
        hashes = np.concatenate([hashes for _, hashes in found])
        order = np.argsort(hashes, kind="stable")
        place = np.searchsorted(self.hashes, hashes[order], "right")
        return IdTable(
            np.insert(self.hashes, place, hashes[order]),
            np.insert(self.rows.astype(kind, copy=False), place, (order + firsts[0]).astype(kind)),
            self.slices + tuple(sha256 for sha256, _ in found),
            np.concatenate([self.firsts[:-1], firsts]),
        )

    def only(self, slices: Collection[str]) -> IdTable:
        """Without the slices that are not among these."""
        stays = np.array([sha256 in slices for sha256 in self.slices], bool)
        if stays.all():
            return self
        sizes = np.diff(self.firsts)
        number = np.searchsorted(self.firsts, self.rows, "right") - 1
        firsts = np.cumsum([0, *np.where(stays, sizes, 0)])
        kept = stays[number]
        rows = (self.rows - self.firsts[number] + firsts[number])[kept]
        return IdTable(
            self.hashes[kept],
            rows.astype(self.rows.dtype),
            tuple(sha256 for sha256, stay in zip(self.slices, stays, strict=True) if stay),
            np.cumsum([0, *sizes[stays]]),
        )

    @property
    def _crc32(self) -> int:
        return zlib.crc32(self.rows.data, zlib.crc32(self.hashes.data))

    def save(self, file: Path) -> None:
        """Whole or not at all. Raises OSError."""
        facts = {"slices": self.slices, "sizes": np.diff(self.firsts).tolist(), "crc32": self._crc32}
        batch = pa.record_batch({"hash": self.hashes, "row": self.rows}, metadata={_FACTS: json.dumps(facts)})
        temporary = file.with_name(f".{file.name}.{uuid.uuid4().hex[:8]}.tmp")
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            with pa.OSFile(str(temporary), "wb") as sink, pa.ipc.new_file(sink, batch.schema) as writer:
                writer.write_batch(batch)
            temporary.replace(file)
        finally:
            temporary.unlink(missing_ok=True)

    @classmethod
    def load(cls, file: Path) -> IdTable:
        """What `save` wrote, mapped; empty where there is none or it is damaged."""
        try:
            batch = pa.ipc.open_file(pa.memory_map(str(file))).get_batch(0)
            facts = json.loads(batch.schema.metadata[_FACTS])
            hashes, rows = (column.to_numpy() for column in batch.columns)
            table = cls(hashes, rows, tuple(facts["slices"]), np.cumsum([0, *facts["sizes"]]))
            if table._crc32 != facts["crc32"]:
                raise ValueError("its checksum differs")
        except FileNotFoundError:
            return cls.empty()
        except (OSError, pa.ArrowException, KeyError, TypeError, ValueError) as error:
            log.warning("%s is damaged (%s): the ids are read again", file, error)
            return cls.empty()
        return table


def hashes_of(ids: Sequence[str]) -> np.ndarray:
    """uint64 of each id, the same everywhere."""
    encoded = (id.encode("utf-8", "surrogatepass") for id in ids)
    return np.frombuffer(b"".join(hashlib.blake2b(id, digest_size=8).digest() for id in encoded), "<u8")


def table_file(root: str) -> Path | None:
    """Of the dataset at `root`: below $DATA_ENGINE_CACHE, else ~/.cache/data-engine. None where there is no home."""
    folder = os.environ.get("DATA_ENGINE_CACHE")
    try:
        cache = Path(folder).expanduser() if folder else Path.home() / ".cache" / "data-engine"
    except RuntimeError:
        return None
    name = str(local_path(root)) if is_local(root) else root.rstrip("/")
    return cache / "ids" / f"{hashlib.sha256(os.fsencode(name)).hexdigest()[:32]}.arrow"
