"""YOLO segmentation: a text file an image, a polygon a mask, in shares of width and height.

Ultralytics finds `labels/<name>.txt` for `images/<name>.jpg`. A line is one polygon, so the pieces of a mask are joined
by seams without width: to the nearest points of what is joined already.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from data_engine.dataset.export.destination import put_bytes
from data_engine.dataset.export.format import Context, ExportImage, Finished, PieceTarget
from data_engine.dataset.export.index import put_index, put_piece_of_index
from data_engine.dataset.export.polygon_loss import PolygonLoss, put_loss
from data_engine.dataset.export.polygons import mask_polygons
from data_engine.dataset.export.sa1b import as_jpeg, fits_jpeg
from data_engine.storage import join

_INDEX = pa.schema([("file", pa.string()), ("image_id", pa.string()), ("uri", pa.string())])
_DIGITS = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class YoloSegmentation:
    """labels/, data.yaml, index.parquet and, unless they are to be left out, images/.

    Images are copied where every reader sees them as they were masked, and encoded as JPEG otherwise. Those of more
    pixels a side than a JPEG can have are left out and counted.
    """

    tolerance: float = 1.0
    with_images: bool = True

    name: ClassVar[str] = "yolo-seg"
    has_categories: ClassVar[bool] = True
    images_per_piece: ClassVar[int] = 500

    @property
    def needs_originals(self) -> bool:
        return self.with_images

    def write(self, images: Iterator[ExportImage], target: PieceTarget, context: Context) -> None:
        loss = PolygonLoss()
        index = []
        for item in images:
            if self.with_images and not fits_jpeg(item.image):
                target.report.too_large += 1
                continue
            lines = [self._line(mask, context, loss) for mask in item.image.masks.to_pylist()]
            if self.with_images:
                jpeg, copied = as_jpeg(item.original, context.pictures.decode, context.pictures.is_plain_jpeg)
                target.put(f"images/{item.name}.jpg", jpeg)
                target.report.copied += copied
            target.put(f"labels/{item.name}.txt", "".join(lines).encode())
            row = item.image.row
            index.append({"file": f"images/{item.name}.jpg", "image_id": row["image_id"], "uri": row["uri"]})
            target.report.images += 1
            target.report.masks += sum(map(bool, lines))
        target.report.figures = loss.to_dict()
        put_piece_of_index(target, index, _INDEX)

    def finish(self, export: Finished) -> list[str]:
        names = "".join(f"  {i}: {json.dumps(name, ensure_ascii=False)}\n" for i, name in enumerate(export.categories))
        text = f"# relative to this file; val: split your own\ntrain: images\nval: images\nnames:\n{names}"
        put_bytes(join(export.destination, "data.yaml"), text.encode())
        put_index(export, _INDEX)
        return put_loss(export)

    def _line(self, mask: dict[str, Any], context: Context, loss: PolygonLoss) -> str:
        """One mask; an empty line's worth of nothing for a mask that no polygon is left of."""
        outlines = mask_polygons(mask, self.tolerance)
        size = (mask["width"], mask["height"])
        joined = np.round(joined_by_seams(outlines.rings) / size, _DIGITS) if outlines.rings else None
        read = [(joined * size).reshape(-1).tolist()] if joined is not None else []
        merged = max(len(outlines.rings) - 1, 0)
        loss.add(mask, read, holes=outlines.holes, dropped=outlines.dropped, merged=merged)
        if joined is None:
            return ""
        return f"{context.category(mask['label'])} {' '.join(f'{value:g}' for value in joined.reshape(-1))}\n"


def joined_by_seams(rings: Sequence[np.ndarray]) -> np.ndarray:
    """Polygons, each Px2 -> one polygon through all of them, with a seam there and back between neighbours."""
    whole = rings[0]
    for ring in rings[1:]:
        at, to = _nearest(whole, ring)
        around = np.concatenate([ring[to:], ring[: to + 1]])
        whole = np.concatenate([whole[: at + 1], around, whole[at:]])
    return whole


def _nearest(a: np.ndarray, b: np.ndarray) -> tuple[int, int]:
    """Positions of the two points that are nearest to each other. Their distances are never all in memory."""
    best, at, to = np.inf, 0, 0
    for j, point in enumerate(b):
        distances = ((a - point) ** 2).sum(1)
        i = int(np.argmin(distances))
        if distances[i] < best:
            best, at, to = float(distances[i]), i, j
    return at, to
