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
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from data_engine.dataset.reader import DatasetImage
from data_engine.storage import filesystem, join, translated

JPEG_QUALITY = 95
INDEX_FILE = "index.parquet"


@dataclass(slots=True)
class ExportReport:
    images: int = 0
    masks: int = 0
    files: int = 0
    without_masks: int = 0
    failed: int = 0
    missing: int = 0  # originals that are gone or changed
    copied: int = 0  # JPEGs taken over byte for byte; the others were encoded again


def export_sa1b(
    images: Iterable[tuple[DatasetImage, bytes | None]],
    destination: str,
    decode: Callable[[bytes], np.ndarray],
    *,
    images_per_tar: int | None = None,
    on_image: Callable[[DatasetImage], None] = lambda image: None,
) -> ExportReport:
    """Writes images and masks as SA-1B: a folder, or tars of `images_per_tar` images.

    images: rows with their original bytes (None when they could not be had again); decode: bytes -> HxWx3 uint8 as the
    masks were made on. Failed images and images without masks are left out and counted. `index.parquet` maps SA-1B's
    numbers back to image_id and uri.
    """
    report = ExportReport()
    index: dict[str, list[Any]] = {"sa_id": [], "file": [], "image_id": [], "uri": []}
    annotation_id = 0
    with ExitStack() as stack:
        sink: _Sink = _Folder(destination) if images_per_tar is None else _Tars(destination, images_per_tar)
        stack.callback(sink.close)
        for image, data in images:
            on_image(image)
            if image.row["status"] == "failed":
                report.failed += 1
            elif not len(image):
                report.without_masks += 1
            elif data is None:
                report.missing += 1
            else:
                number = report.images + 1
                jpeg, copied = as_jpeg(data, decode)
                record = sa1b_record(image, number, annotation_id + 1)
                file = sink.add(number, jpeg, json.dumps(record, separators=(",", ":")).encode())
                for name, value in zip(index, (number, file, image.image_id, image.row["uri"]), strict=True):
                    index[name].append(value)
                annotation_id += len(image)
                report.images, report.masks = number, annotation_id
                report.copied += copied
    report.files = sink.files
    buffer = io.BytesIO()
    pq.write_table(pa.table(index), buffer, compression="zstd")
    _put(join(destination, INDEX_FILE), buffer.getvalue())
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


def as_jpeg(data: bytes, decode: Callable[[bytes], np.ndarray]) -> tuple[bytes, bool]:
    """The image as a JPEG whose pixels are those the masks were made on, and whether it is the original file.

    An original is taken over only if every reader shows it the same way: colour, and not rotated by EXIF.
    """
    with Image.open(io.BytesIO(data)) as image:
        plain = image.format == "JPEG" and image.mode == "RGB" and image.getexif().get(0x0112, 1) == 1
    if plain:
        return data, True
    buffer = io.BytesIO()
    Image.fromarray(decode(data)).save(buffer, "JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue(), False


class _Sink(Protocol):
    files: int

    def add(self, number: int, jpeg: bytes, record: bytes) -> str: ...
    def close(self) -> None: ...


class _Folder:
    def __init__(self, destination: str) -> None:
        self._destination = destination
        self.files = 0

    def add(self, number: int, jpeg: bytes, record: bytes) -> str:
        _put(join(self._destination, f"sa_{number}.jpg"), jpeg)
        _put(join(self._destination, f"sa_{number}.json"), record)
        self.files += 2
        return f"sa_{number}.jpg"

    def close(self) -> None: ...


class _Tars:
    """sa_000000.tar, sa_000001.tar, ...: each is built in a temporary file and put when it is whole."""

    def __init__(self, destination: str, images_per_tar: int) -> None:
        self._destination, self._images_per_tar = destination, images_per_tar
        self._held = 0
        self._file: Any = None
        self._tar: tarfile.TarFile | None = None
        self.files = 0

    def add(self, number: int, jpeg: bytes, record: bytes) -> str:
        if self._tar is None:
            self._file = tempfile.TemporaryFile()  # noqa: SIM115 - closed with its tar
            self._tar = tarfile.TarFile(fileobj=self._file, mode="w", format=tarfile.USTAR_FORMAT)
        for name, data in ((f"sa_{number}.jpg", jpeg), (f"sa_{number}.json", record)):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            self._tar.addfile(member, io.BytesIO(data))
        name = f"sa_{self.files:06d}.tar"
        self._held += 1
        if self._held == self._images_per_tar:
            self.close()
        return name

    def close(self) -> None:
        if self._tar is None:
            return
        self._tar.close()
        self._file.seek(0)
        uri = join(self._destination, f"sa_{self.files:06d}.tar")
        fs, path = filesystem(uri)
        with translated(uri):
            fs.makedirs(path.rsplit("/", 1)[0], exist_ok=True)
            with fs.open(path, "wb") as target:
                for block in _blocks(self._file):
                    target.write(block)
        self._file.close()
        self._tar, self._held = None, 0
        self.files += 1


def _blocks(file: Any) -> Iterator[bytes]:
    while block := file.read(1 << 22):
        yield block


def _put(uri: str, data: bytes) -> None:
    fs, path = filesystem(uri)
    with translated(uri):
        fs.makedirs(path.rsplit("/", 1)[0], exist_ok=True)
        fs.pipe_file(path, data)
