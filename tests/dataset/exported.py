"""What the tests of the export formats share: a dataset of odd masks, its pictures, and an export of it."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from dataset import small_dataset
from dataset.small_dataset import HEIGHT, WIDTH
from PIL import Image
from scipy import ndimage

from data_engine.dataset.commits import Part
from data_engine.dataset.duplicates import DUPLICATES, MASK_DUPLICATES, DatasetState, DedupVersion
from data_engine.dataset.export.format import Format
from data_engine.dataset.export.job import ExportJob
from data_engine.dataset.export.pieces import Span, span_images
from data_engine.dataset.export.report import ExportReport
from data_engine.dataset.reader import DatasetImage, MaskDataset
from data_engine.images.settings import InputSettings
from data_engine.pipeline.pictures import Pictures

IMAGES = 8  # of 12 rows, four failed
ROTATED = Image.Exif()
ROTATED[0x0112] = 6  # orientation


def picture(format: str = "JPEG", mode: str = "RGB", **save: object) -> bytes:
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    pixels = np.stack([4 * y, 4 * x, 2 * (x + y)], 2).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, format, **save)
    return buffer.getvalue()


def blob(rng: np.random.Generator) -> np.ndarray:
    """A mask of several pieces with holes."""
    noise = ndimage.gaussian_filter(rng.standard_normal((HEIGHT, WIDTH)), 3)
    return np.asfortranarray(noise > np.quantile(noise, 0.7)).astype(np.uint8)


def build_blobs(root: Path, monkeypatch) -> MaskDataset:
    """The small dataset, with masks of odd shapes."""
    monkeypatch.setattr(small_dataset, "random_mask", blob)
    small_dataset.build(root)
    return MaskDataset(str(root))


@dataclass(frozen=True)
class OnePicture:
    """A source in which every original is the same picture."""

    data: bytes = field(default_factory=picture)
    missing: frozenset[str] = frozenset()
    broken: str | None = None  # reading it is a crash
    decoder: Pictures = field(default_factory=lambda: Pictures(InputSettings()))

    def only(self, spans: Sequence[Span]) -> OnePicture:
        return self

    def read(self, dataset: MaskDataset, span: Span) -> Iterator[tuple[DatasetImage, bytes | None]]:
        for _, image in span_images(dataset, span):
            if image.image_id == self.broken:
                raise RuntimeError(self.broken)
            yield image, None if image.image_id in self.missing else self.data


def export(dataset: MaskDataset, destination: object, format: Format, **options: object) -> ExportReport:
    """The counts of the export; `lines` are dropped."""
    if format.needs_originals:
        options.setdefault("source", OnePicture())
    report, _ = ExportJob(root=dataset.root, destination=str(destination), format=format, **options).run()
    return report


def leave_out(dataset: MaskDataset, name: str, images: Sequence[str], masks: Sequence[tuple[str, int]] = ()) -> None:
    """Writes a version of duplicates that leaves out `images`, and `masks`: image and number, an image's together."""
    rows = [
        {"image_id": image, "cluster_id": 0, "keep": False, "reason": "exact", "distance": 0.0, "of": "a/0-0.jpg"}
        for image in images
    ]
    part = _put_table(dataset, name, pa.Table.from_pylist(rows, schema=DUPLICATES))
    gone = [{"image_id": image, "mask_id": mask, "duplicate_of": 0, "iou": 1.0} for image, mask in masks]
    of_masks = _put_table(dataset, f"{name}-masks", pa.Table.from_pylist(gone, schema=MASK_DUPLICATES))
    state = DatasetState.of(dataset.plan["fingerprint"], dataset.complete, dataset.commits)
    version = DedupVersion(
        version=name,
        dataset=state,
        parameters={},
        counts={},
        duplicates=part,
        mask_duplicates=of_masks if masks else None,
        owner="o",
        created_at=name,
    )
    (Path(dataset.root) / f"_dedup/{name}.json").write_bytes(version.to_json())


def _put_table(dataset: MaskDataset, name: str, table: pa.Table) -> Part:
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    data = buffer.getvalue()
    folder = Path(dataset.root) / "_dedup"
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.parquet").write_bytes(data)
    digest = hashlib.sha256(data).hexdigest()
    return Part(file=f"_dedup/{name}.parquet", size=len(data), sha256=digest, rows=table.num_rows)


def with_masks(dataset: MaskDataset) -> list[DatasetImage]:
    return [image for image in dataset if len(image)]
