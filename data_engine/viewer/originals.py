"""The encoded bytes of one image of a dataset, read without reading its input through.

A file is fetched alone. In a tar the slice's offset, from its commit record, leads to the image's header. Parquet and
gzipped tars have no such way in: there the images that are passed are kept, since their neighbours are asked for next.
So it is in all tars where the dataset is a replay of a part of the images, whose numbers do not say where they lie.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import islice
from threading import Lock

from data_engine.dataset.commits import CommitRecord
from data_engine.errors import DataEngineError
from data_engine.images.fingerprint import sha256
from data_engine.images.shard import EncodedImage, Shard
from data_engine.images.sources import read_shard
from data_engine.pipeline.originals import input_settings, is_part
from data_engine.pipeline.plan import JobPlan
from data_engine.viewer.byte_cache import ByteCache
from data_engine.viewer.tar_slice import TarSlice, is_zipped

_CACHE_BYTES = 128 << 20
_AHEAD = 16  # images read behind the one that was asked for, where reading goes only forward


@dataclass(frozen=True, slots=True)
class Missing:
    """An original that cannot be shown, and why."""

    reason: str


class Originals:
    """The images of the plan's input. Every one is compared with the sha256 of its row: masks never lie on another."""

    def __init__(self, plan: JobPlan) -> None:
        self._shards = {planned.id: planned.shard for planned in plan.shards}
        self.settings = input_settings(plan)
        self._part = is_part(plan)
        self._cache = ByteCache(_CACHE_BYTES)
        self._locks: defaultdict[str, Lock] = defaultdict(Lock)
        self._slices: dict[tuple[str, int], TarSlice] = {}
        self._zipped = lru_cache(maxsize=None)(lambda shard_id: is_zipped(self._shards[shard_id], self.settings))

    def read(
        self, records: Sequence[CommitRecord], number: int, row: int, uri: str, digest: bytes | None
    ) -> bytes | Missing:
        """The bytes of image `row` of the slice `records[number]`.

        uri, digest: of its row, the latter its sha256. Records are in order, so that the one before tells where a slice
        of a tar begins.
        """
        record = records[number]
        index = record.first_image + row
        shard = self._shards.get(record.shard)
        if digest is None:
            return Missing("it could not be read when it was masked")
        if shard is None:
            return Missing("its shard is not in the dataset's plan")
        named = self._part and shard.kind != "files"  # whose listed files are those of the dataset alone
        key = (shard.id, uri if named else index)
        data = self._cache.get(key)
        if data is None:
            try:
                if named:
                    found = self._named(shard, records, number, index, uri)
                else:
                    found = self._find(shard, records, number, index)
            except FileNotFoundError:
                return Missing("the input is gone")
            except DataEngineError as error:
                return Missing(str(error))
            if found is None or found.data is None:
                return Missing(str(found.error) if found is not None and found.error else "not found in the input")
            data = found.data
        if sha256(data) != digest:
            return Missing("it has changed since it was masked")
        self._cache.put(key, data)
        return data

    def _find(self, shard: Shard, records: Sequence[CommitRecord], number: int, index: int) -> EncodedImage | None:
        if shard.kind == "files":
            alone = replace(shard, files=shard.files[index : index + 1])
            return next(read_shard(alone, self.settings), None)
        if shard.kind == "tar" and not self._zipped(shard.id):
            return self._in_tar(shard, records, number, index)
        with self._locks[shard.id]:  # whoever waits finds what the one before has passed
            kept = self._cache.get((shard.id, index))
            return EncodedImage(index, "", "", kept) if kept is not None else self._forward(shard, index)

    def _in_tar(self, shard: Shard, records: Sequence[CommitRecord], number: int, index: int) -> EncodedImage | None:
        begin = _offset(records, number)
        first = 0 if begin is None else records[number].first_image
        walk = self._slices.setdefault((shard.id, first), TarSlice(shard, self.settings, begin or 0))
        offset = walk.offset(index - first)
        if offset is None:
            return None
        return next(read_shard(shard, self.settings, start=index, offset=offset), None)

    def _forward(self, shard: Shard, index: int) -> EncodedImage | None:
        found = None
        start = max(0, index - _AHEAD)
        for image in islice(read_shard(shard, self.settings, start=start), index - start + 1 + _AHEAD):
            if image.data is not None:
                self._cache.put((shard.id, image.index), image.data)
            if image.index == index:
                found = image
        return found

    def _named(
        self, shard: Shard, records: Sequence[CommitRecord], number: int, index: int, uri: str
    ) -> EncodedImage | None:
        """The image of this URI, which lies at `index` or after."""
        with self._locks[shard.id]:
            kept = self._cache.get((shard.id, uri))
            if kept is not None:
                return EncodedImage(index, "", uri, kept)
            offset = _offset(records, number)
            start = index if offset is None else records[number].first_image
            for image in read_shard(shard, self.settings, start=start, offset=offset):
                if image.data is not None:
                    self._cache.put((shard.id, image.uri), image.data)
                if image.uri == uri:
                    return image
        return None


def _offset(records: Sequence[CommitRecord], number: int) -> int | None:
    """Where in its tar a slice begins, if the record before tells."""
    record, before = records[number], records[number - 1] if number else None
    follows = before is not None and before.shard == record.shard and before.slice == record.slice - 1
    return before.next_offset if before is not None and follows else None
