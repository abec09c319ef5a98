"""Export in the format of SA-1B: `sa_<id>.jpg` beside `sa_<id>.json`, in tars or in a folder.

What readers of SA-1B rely on, checked against an authentic record: the keys and their order, `w = xmax - xmin` in
`bbox`, floats in `bbox` and ints in `area` and `crop_box`, one type a field everywhere (Hugging Face infers types from
the first five records), nothing null, no image without masks.
"""

from __future__ import annotations

import io
import json
import tarfile
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import IO, Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from data_engine.dataset.export.destination import put_bytes, put_stream
from data_engine.dataset.reader import DatasetImage
from data_engine.errors import StorageError
from data_engine.storage import join

JPEG_QUALITY = 95
JPEG_MAX_SIDE = 65_500  # of libjpeg
INDEX_FILE = "index.parquet"


@dataclass(slots=True)
class ExportReport:
    images: int = 0
    masks: int = 0
    files: int = 0
    without_masks: int = 0
    failed: int = 0
    missing: int = 0  # originals that are gone or changed
    too_large: int = 0  # of more pixels a side than a JPEG can have
    copied: int = 0  # JPEGs taken over byte for byte; the others were encoded again


def export_sa1b(
    images: Iterable[tuple[DatasetImage, bytes | None]],
    destination: str,
    decode: Callable[[bytes], np.ndarray],
    is_plain_jpeg: Callable[[bytes], bool],
    *,
    images_per_tar: int | None = None,
    on_image: Callable[[DatasetImage], None] = lambda image: None,
) -> ExportReport:
    """Writes images and masks as SA-1B: a folder, or tars of `images_per_tar` images.

    images: rows with their original bytes (None when they could not be had again); decode: bytes -> HxWx3 uint8 as the
    masks were made on; is_plain_jpeg: whether bytes are a JPEG that every reader shows as `decode` does, so that it is
    taken over. Failed images and images without masks are left out and counted. `index.parquet` maps SA-1B's numbers
    back to image_id and uri. Raises StorageError when the destination, or the room for a tar in the making, fails.
    """
    report = ExportReport()
    index: dict[str, list[Any]] = {"sa_id": [], "file": [], "image_id": [], "uri": []}
    sink: _Sink = _Folder(destination) if images_per_tar is None else _Tars(destination, images_per_tar)
    try:
        for image, data in images:
            on_image(image)
            if image.row["status"] == "failed":
                report.failed += 1
            elif not len(image):
                report.without_masks += 1
            elif data is None:
                report.missing += 1
            elif max(image.row["height"], image.row["width"]) > JPEG_MAX_SIDE:
                report.too_large += 1
            else:
                number = report.images + 1
                jpeg, copied = as_jpeg(data, decode, is_plain_jpeg)
                record = sa1b_record(image, number, report.masks + 1)
                file = sink.add(number, jpeg, json.dumps(record, separators=(",", ":")).encode())
                for name, value in zip(index, (number, file, image.image_id, image.row["uri"]), strict=True):
                    index[name].append(value)
                report.images, report.masks = number, report.masks + len(image)
                report.copied += copied
        sink.finish()
    finally:
        sink.discard()
    report.files = sink.files
    buffer = io.BytesIO()
    pq.write_table(pa.table(index), buffer, compression="zstd")
    put_bytes(join(destination, INDEX_FILE), buffer.getvalue())
    return report


def sa1b_record(image: DatasetImage, number: int, first_annotation_id: int) -> dict[str, Any]:
    """One image's JSON."""
    height, width = image.row["height"], image.row["width"]
    annotations = [
        {
            "bbox": [
                float(m["bbox_x"]),
                float(m["bbox_y"]),
                float(max(m["bbox_w"] - 1, 0)),
                float(max(m["bbox_h"] - 1, 0)),
            ],
            "area": m["area"],
            "segmentation": {"size": [height, width], "counts": m["counts"]},
            "predicted_iou": m["predicted_iou"],
            "point_coords": [[m["point_x"], m["point_y"]]],
            "crop_box": [m["crop_x"], m["crop_y"], m["crop_w"], m["crop_h"]],
            "id": first_annotation_id + i,
            "stability_score": m["stability_score"],
        }
        for i, m in enumerate(image.masks.to_pylist())
    ]
    file = f"sa_{number}.jpg"
    return {
        "image": {"image_id": number, "width": width, "height": height, "file_name": file},
        "annotations": annotations,
    }


def as_jpeg(
    data: bytes, decode: Callable[[bytes], np.ndarray], is_plain_jpeg: Callable[[bytes], bool]
) -> tuple[bytes, bool]:
    """The image as a JPEG whose pixels are those the masks were made on, and whether it is the original file."""
    if is_plain_jpeg(data):
        return data, True
    buffer = io.BytesIO()
    Image.fromarray(decode(data)).save(buffer, "JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue(), False


class _Sink(Protocol):
    files: int

    def add(self, number: int, jpeg: bytes, record: bytes) -> str: ...

    def finish(self) -> None:
        """Puts what is held back."""

    def discard(self) -> None:
        """Drops what is held back, if `finish` was not reached."""


class _Folder:
    def __init__(self, destination: str) -> None:
        self._destination = destination
        self.files = 0

    def add(self, number: int, jpeg: bytes, record: bytes) -> str:
        put_bytes(join(self._destination, f"sa_{number}.jpg"), jpeg)
        put_bytes(join(self._destination, f"sa_{number}.json"), record)
        self.files += 2
        return f"sa_{number}.jpg"

    def finish(self) -> None: ...

    def discard(self) -> None: ...


class _Tars:
    """sa_000000.tar, sa_000001.tar, ...: each is built in a temporary file and put when it is whole."""

    def __init__(self, destination: str, images_per_tar: int) -> None:
        self._destination, self._images_per_tar = destination, images_per_tar
        self._held = 0
        self._file: IO[bytes] | None = None
        self.files = 0

    def add(self, number: int, jpeg: bytes, record: bytes) -> str:
        with _room_for_a_tar():
            if self._file is None:
                self._file = tempfile.TemporaryFile()  # noqa: SIM115 - closed when it is put or dropped
            for name, data in ((f"sa_{number}.jpg", jpeg), (f"sa_{number}.json", record)):
                _write_member(self._file, name, data)
        name = f"sa_{self.files:06d}.tar"
        self._held += 1
        if self._held == self._images_per_tar:
            self.finish()
        return name

    def finish(self) -> None:
        if self._file is None:
            return
        with _room_for_a_tar():
            self._file.write(bytes(-(self._file.tell() + 1024) % tarfile.RECORDSIZE + 1024))  # the end marker
            self._file.seek(0)
        put_stream(join(self._destination, f"sa_{self.files:06d}.tar"), self._file)
        self.discard()
        self.files += 1

    def discard(self) -> None:
        if self._file is not None:
            with suppress(OSError):  # what is buffered may find no room either
                self._file.close()
        self._file, self._held = None, 0


def _write_member(file: IO[bytes], name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    file.write(member.tobuf(tarfile.USTAR_FORMAT))
    file.write(data)
    file.write(bytes(-len(data) % tarfile.BLOCKSIZE))


@contextmanager
def _room_for_a_tar() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"a tar in the making, in the folder for temporary files: {error.strerror or error}; "
            "free some space there, or set TMPDIR to a folder that has more"
        ) from error
