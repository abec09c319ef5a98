"""The pictures behind a dataset's masks: encoded files decoded as they were when they were masked."""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO

import numpy as np
from PIL import JpegImagePlugin, PngImagePlugin
from PIL.Image import Image

from data_engine.images.decode import decode, is_plain_jpeg
from data_engine.images.settings import InputSettings

_ORIENTATION = 0x0112  # EXIF tag


@dataclass(frozen=True, slots=True)
class Pictures:
    """Decodes with the settings of the job that made the dataset."""

    settings: InputSettings

    def decode(self, data: bytes) -> np.ndarray:
        """HxWx3 uint8. Raises ImageError."""
        return decode(data, self.settings)

    def is_plain_jpeg(self, data: bytes) -> bool:
        """Whether every reader shows these bytes as `decode` does."""
        return is_plain_jpeg(data)

    def orientation(self, data: bytes) -> int:
        """The EXIF orientation, 1 to 8, that a reader of a JPEG or PNG must apply to see what was masked."""
        return self.stored_orientation(data) if self.settings.apply_orientation else 1

    def stored_orientation(self, data: bytes) -> int:
        """The EXIF orientation that a JPEG or PNG states; 1 where it states none."""
        try:  # not Image.open, whose pixel limit is not the job's
            with _opened(data) as image:
                value = image.getexif().get(_ORIENTATION, 1)
        except Exception:  # the picture is whole, only its metadata is not
            return 1
        return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _opened(data: bytes) -> Image:
    if data.startswith(b"\x89PNG"):
        return PngImagePlugin.PngImageFile(BytesIO(data))
    return JpegImagePlugin.jpeg_factory(BytesIO(data))
