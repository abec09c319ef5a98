"""SA-1B as it is released, and as `data-engine export --format sa1b` writes it: sa_N.jpg beside sa_N.json, in folders
or in tars. Nothing is unpacked: of a tar the headers are read once, then single members.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from rlemasklib import RLEMask

from data_engine.errors import SourceError
from data_engine.images.decode import decode
from data_engine.images.fetch import fetch
from data_engine.images.listing import FoundFile, find_files
from data_engine.images.settings import InputSettings
from data_engine.images.shard import FileEntry, ImageError
from data_engine.images.stream import InputFile
from data_engine.masks import rle
from data_engine.storage import read_range, redact, scheme_of
from data_engine.train.data.labelled import DataFilters
from data_engine.train.data.pool import Example, Pool, Portion
from data_engine.train.data.tar_index import Member, index_tar

logger = logging.getLogger(__name__)

_SETTINGS = InputSettings()
_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")


@dataclass(frozen=True, slots=True)
class Pair:
    """A picture and its annotations: files of their own, or members of a tar."""

    picture: FileEntry | Member
    annotations: FileEntry | Member


class Sa1b(Pool):
    """Units: one for all single files, and one for each tar."""

    kind = "sa1b"

    def __init__(self, uri: str, filters: DataFilters) -> None:
        """Lists `uri`: a folder, a tar, a glob or braces. Raises SourceError where there are no pairs."""
        super().__init__(redact(uri), filters)
        self.unpaired = 0
        """Pictures without annotations and annotations without a picture."""
        self.damaged_tars: list[str] = []
        files = find_files(uri, _SETTINGS).files
        compressed = next((file for file in files if file.name.lower().endswith(_COMPRESSED)), None)
        if compressed is not None:
            raise SourceError(f"{redact(compressed.uri)}: a compressed tar has no members to find; decompress it first")
        tars = [file for file in files if file.name.lower().endswith(".tar")]
        single = {file.name: FileEntry(file.name, file.uri, file.size) for file in files if file not in tars}
        self._units: list[tuple[str | None, list[Pair]]] = [(None, self._pairs(single))]
        with ThreadPoolExecutor(_SETTINGS.fetch_threads, thread_name_prefix="index") as pool:
            for tar, (members, damage) in zip(tars, pool.map(_index, tars), strict=True):
                self._add_tar(tar, members, damage)
        self._units = [unit for unit in self._units if unit[1]]
        if not self._units:
            raise SourceError(
                f"{redact(uri)}: no picture (sa_1.jpg) has its annotations (sa_1.json) beside it, in folders or tars"
            )
        if self.unpaired:
            logger.warning("%s: %d pictures or annotations have no counterpart", self.source, self.unpaired)

    def sizes(self) -> Sequence[int]:
        return [len(pairs) for _, pairs in self._units]

    def image_ids(self) -> Iterator[str]:
        return (pair.picture.image_id for _, pairs in self._units for pair in pairs)

    def read(self, portion: Portion) -> Iterator[Example | None]:
        tar, pairs = self._units[portion.unit]
        if tar is None:
            for position in portion.positions:
                yield self._example(pairs[position], _fetched)
            return
        for position in portion.positions:
            yield self._example(pairs[position], partial(_read_member, tar))

    def describe(self) -> dict[str, Any]:
        return {**super().describe(), "unpaired": self.unpaired, "damaged_tars": list(self.damaged_tars)}

    def _example(self, pair: Pair, read: Any) -> Example:
        return Example(pair.picture.image_id, partial(self._masks, pair, read), partial(_pixels, pair, read))

    def _masks(self, pair: Pair, read: Any) -> list[RLEMask]:
        """The masks whose scores pass. Raises ImageError for annotations that are not SA-1B's."""
        filters = self.filters
        try:
            content = json.loads(read(pair.annotations))
            size = (int(content["image"]["height"]), int(content["image"]["width"]))
            return [
                _runs(annotation["segmentation"], size)
                for annotation in content["annotations"]
                if annotation["predicted_iou"] >= filters.min_predicted_iou
                and annotation["stability_score"] >= filters.min_stability
            ]
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ImageError(
                "annotations", f"its JSON is not SA-1B's ({type(error).__name__}: {' '.join(str(error).split())[:200]})"
            ) from None

    def _add_tar(self, tar: FoundFile, members: list[Member], damage: str | None) -> None:
        if damage is not None:
            logger.warning("%s; what lies before the damage is used", damage)
            self.damaged_tars.append(damage)
        self._units.append((tar.uri, self._pairs({member.image_id: member for member in members})))

    def _pairs(self, files: dict[str, Any]) -> list[Pair]:
        """Pictures with their annotations, in order of name."""
        pictures = {name.rpartition(".")[0]: name for name in files if _SETTINGS.is_image(name)}
        annotations = {name.rpartition(".")[0]: name for name in files if name.lower().endswith(".json")}
        self.unpaired += len(pictures.keys() ^ annotations.keys())
        both = sorted(pictures.keys() & annotations.keys())
        return [Pair(files[pictures[stem]], files[annotations[stem]]) for stem in both]


def _index(tar: FoundFile) -> tuple[list[Member], str | None]:
    return index_tar(tar.uri, tar.name, _SETTINGS)


def _fetched(entry: FileEntry) -> bytes:
    return fetch(entry, _SETTINGS)


def _read_member(tar: str, member: Member) -> bytes:
    """In one request, and in any thread."""
    try:
        if scheme_of(tar) in ("http", "https"):  # a server that knows no ranges sends all of it: InputFile copes
            with InputFile(tar, _SETTINGS) as file:
                file.seek(member.start)
                data = file.read(member.size)
        else:
            data = read_range(tar, member.start, member.start + member.size) if member.size else b""
    except FileNotFoundError:
        raise ImageError("unreadable", "its tar is gone since it was listed") from None
    if len(data) < member.size:
        raise ImageError("truncated", "its tar has become shorter since it was listed")
    return data


def _pixels(pair: Pair, read: Any) -> np.ndarray:
    return decode(read(pair.picture), _SETTINGS)


def _runs(segmentation: dict[str, Any], size: tuple[int, int]) -> RLEMask:
    if tuple(segmentation["size"]) != size:
        raise ValueError(f"a mask of {segmentation['size']} on an image of {list(size)}")
    return rle.from_counts_string(segmentation["counts"], *size)
