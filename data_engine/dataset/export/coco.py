"""COCO instances JSON: with the run lengths as they are, or with polygons and a report of what they lose.

One file a piece, since every reader loads a file whole; each is complete in itself, with ids that are unique over all.
`bbox` is pycocotools' (w counts pixels). `score` is the label's where there is one, else the predicted IoU.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from data_engine.dataset.export.destination import in_the_making, room_for
from data_engine.dataset.export.format import Context, ExportImage, Finished, PieceTarget
from data_engine.dataset.export.polygon_loss import PolygonLoss, put_loss
from data_engine.dataset.export.polygons import mask_polygons

# The shape of a mask: {"size", "counts"} or polygons. None: it has none that a reader could use.
_Segmentation = Callable[[dict[str, Any]], Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Coco:
    """Compressed run lengths: nothing is lost."""

    images_per_file: int = 1000

    name: ClassVar[str] = "coco"
    needs_originals: ClassVar[bool] = False
    has_categories: ClassVar[bool] = True

    @property
    def images_per_piece(self) -> int:
        return self.images_per_file

    def write(self, images: Iterator[ExportImage], target: PieceTarget, context: Context) -> None:
        def runs(mask: dict[str, Any]) -> dict[str, Any]:
            return {"size": [mask["height"], mask["width"]], "counts": mask["counts"]}

        _write_file(images, target, context, runs)

    def finish(self, export: Finished) -> list[str]:  # noqa: ARG002 - nothing describes the whole
        return []


@dataclass(frozen=True, slots=True, kw_only=True)
class CocoPolygons:
    """Polygons: the outlines of a mask's pieces, simplified by at most `tolerance` pixels. Holes are lost."""

    images_per_file: int = 1000
    tolerance: float = 1.0

    name: ClassVar[str] = "coco-polygons"
    needs_originals: ClassVar[bool] = False
    has_categories: ClassVar[bool] = True

    @property
    def images_per_piece(self) -> int:
        return self.images_per_file

    def write(self, images: Iterator[ExportImage], target: PieceTarget, context: Context) -> None:
        loss = PolygonLoss()

        def polygons(mask: dict[str, Any]) -> list[list[float]] | None:
            outlines = mask_polygons(mask, self.tolerance)
            rings = [ring.reshape(-1).tolist() for ring in outlines.rings]
            loss.add(mask, rings, holes=outlines.holes, dropped=outlines.dropped)
            return rings or None

        _write_file(images, target, context, polygons)
        target.report.figures = loss.to_dict()

    def finish(self, export: Finished) -> list[str]:
        return put_loss(export)


def _write_file(
    images: Iterator[ExportImage], target: PieceTarget, context: Context, segmentation: _Segmentation
) -> None:
    """Annotations are streamed; the much smaller images wait for the end."""
    entries: list[dict[str, Any]] = []
    with in_the_making("a COCO file") as file:
        head = {
            "info": {"description": "masks by data-engine", "model": context.plan.get("model", {}).get("name")},
            "licenses": [],
            "categories": [{"id": i + 1, "name": name} for i, name in enumerate(context.categories)],
        }
        with room_for("a COCO file"):
            file.write(json.dumps(head)[:-1].encode() + b', "annotations": [')
        before = "\n"
        for item in images:
            annotations = list(_annotations(item, context, segmentation))
            if annotations:  # of polygons, an image may have none left
                text = ",\n".join(json.dumps(annotation, separators=(",", ":")) for annotation in annotations)
                with room_for("a COCO file"):
                    file.write((before + text).encode())
                before = ",\n"
            entries.append(_image_entry(item))
            target.report.images += 1
            target.report.masks += len(annotations)
        if not entries:
            return
        with room_for("a COCO file"):
            file.write(b'\n], "images": [\n' + ",\n".join(map(json.dumps, entries)).encode() + b"\n]}\n")
            file.seek(0)
        target.put_stream(f"instances_{target.index:05d}.json", file)


def _image_entry(item: ExportImage) -> dict[str, Any]:
    row = item.image.row
    return {
        "id": item.number,
        "file_name": row["image_id"],
        "width": row["width"],
        "height": row["height"],
        "uri": row["uri"],
    }


def _annotations(item: ExportImage, context: Context, segmentation: _Segmentation) -> Iterator[dict[str, Any]]:
    for mask in item.image.masks.to_pylist():
        shape = segmentation(mask)
        if shape is None:
            continue
        labelled = mask["label"] is not None
        yield {
            "id": item.first_mask + mask["mask_id"],
            "image_id": item.number,
            "category_id": context.category(mask["label"]) + 1,
            "iscrowd": 0,
            "area": mask["area"],
            "bbox": [mask["bbox_x"], mask["bbox_y"], mask["bbox_w"], mask["bbox_h"]],
            "segmentation": shape,
            "score": mask["label_score"] if labelled and mask["label_score"] is not None else mask["predicted_iou"],
            "predicted_iou": mask["predicted_iou"],
            "stability_score": mask["stability_score"],
        }
