"""Where exports get the original images from, without knowing how: `data_engine.pipeline.originals` does."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np

from data_engine.dataset.export.pieces import Span
from data_engine.dataset.reader import DatasetImage, MaskDataset


class Decoder(Protocol):
    """Encoded images as the masks were made on them. Can be sent to another process."""

    def decode(self, data: bytes) -> np.ndarray:
        """HxWx3 uint8."""

    def is_plain_jpeg(self, data: bytes) -> bool:
        """Whether every reader shows these bytes as `decode` does."""

    def orientation(self, data: bytes) -> int:
        """The EXIF orientation that a reader must apply to see what was masked: 1 to 8."""

    def stored_orientation(self, data: bytes) -> int:
        """The EXIF orientation that the file states: 1 to 8."""


class Source(Protocol):
    """The original files of a dataset. Can be sent to another process."""

    @property
    def decoder(self) -> Decoder: ...

    def only(self, spans: Sequence[Span]) -> Source:
        """What is needed for these spans alone, which is less to send."""

    def read(self, dataset: MaskDataset, span: Span) -> Iterator[tuple[DatasetImage, bytes | None]]:
        """The images of a span with their files; None for one that is gone or not the same any more."""
