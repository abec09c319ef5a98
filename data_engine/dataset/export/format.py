"""What every export format is: how it writes one piece, and what it adds when all pieces are there."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import IO, Any, Protocol

from data_engine.dataset.export.destination import put_bytes, put_stream
from data_engine.dataset.export.report import ExportReport
from data_engine.dataset.export.source import Decoder
from data_engine.dataset.reader import DatasetImage
from data_engine.storage import join

STATE_FOLDER = "_export"
OBJECT = "object"  # the one category of masks without labels


@dataclass(frozen=True, slots=True)
class ExportImage:
    """An image to be written: it has masks, and its original is there where the format needs it."""

    number: int  # from 1, unique in the export, the same in every run
    first_mask: int  # a number for its mask 0; with mask_id added, masks have unique numbers from 1, as in every run
    image: DatasetImage
    data: bytes | None  # the original file; None where the format does without

    @property
    def name(self) -> str:
        """A file name without suffix: unique by its number, readable by the last part of the id."""
        stem = self.image.image_id.rsplit("/", 1)[-1].rsplit(".", 1)[0]
        return f"{self.number:08d}-{re.sub(r'[^A-Za-z0-9.-]+', '_', stem)[:80].strip('.') or 'image'}"

    @property
    def original(self) -> bytes:
        assert self.data is not None
        return self.data


@dataclass(slots=True)
class PieceTarget:
    """Where a piece is written, and what is counted on the way."""

    destination: str
    index: int
    report: ExportReport

    def put(self, name: str, data: bytes) -> None:
        put_bytes(join(self.destination, name), data)
        self.report.files += 1

    def put_stream(self, name: str, source: IO[bytes]) -> None:
        put_stream(join(self.destination, name), source)
        self.report.files += 1

    def put_aside(self, name: str, data: bytes) -> None:
        """A file for `finish`, which is no part of the export."""
        put_bytes(join(self.destination, STATE_FOLDER, name), data)

    def wrote(self, image: DatasetImage, copied: bool = False) -> None:
        self.report.images += 1
        self.report.masks += len(image)
        self.report.copied += copied


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """A whole export, for the files that describe it."""

    destination: str
    plan: dict[str, Any]  # the dataset's `_plan/job.json`
    parameters: dict[str, Any]
    categories: tuple[str, ...]
    reports: Sequence[ExportReport]  # by piece
    total: ExportReport


class Format(Protocol):
    """An export format: its options are its fields, which decide whether two runs are the same export."""

    @property
    def name(self) -> str: ...

    @property
    def needs_originals(self) -> bool: ...

    @property
    def has_categories(self) -> bool:
        """Whether it names the categories of the masks. To look for them is a pass over all files of masks."""

    @property
    def images_per_piece(self) -> int: ...

    def write(self, images: Iterator[ExportImage], target: PieceTarget, context: Context) -> None:
        """Writes one piece, which may turn out empty."""

    def finish(self, export: Finished) -> list[str]:
        """Writes what describes the whole, and returns lines to print."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """What all pieces of an export share."""

    decoder: Decoder | None  # None for formats that need no originals
    categories: tuple[str, ...]
    pieces: int
    plan: dict[str, Any]

    @property
    def pictures(self) -> Decoder:
        assert self.decoder is not None
        return self.decoder

    def category(self, label: str | None) -> int:
        """Index of a mask's category, from 0."""
        return self.categories.index(label if label is not None else OBJECT)
