"""A dataset and the edits of people -> a dataset with the corrected masks, in the same format."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data_engine.config import override_settings
from data_engine.corrections.edit_book import EditBook, version_of
from data_engine.corrections.edits import EDITS, Edit
from data_engine.corrections.standing import Standing, standing
from data_engine.dataset.commits import CommitRecord, Totals
from data_engine.dataset.manifest import read_manifest
from data_engine.dataset.reader import DatasetImage, MaskDataset
from data_engine.dataset.schema import MASKS
from data_engine.dataset.writer import SliceWriter
from data_engine.errors import DatasetError, UsageError
from data_engine.pipeline.commit import put
from data_engine.pipeline.plan import JobPlan, input_name, read_plan
from data_engine.replay.derived import kept_shards, write_derived
from data_engine.storage import join, read_bytes

MADE_BY = "_made_by/masks.parquet"
"""In the corrected dataset: of each mask that a person made, its image_id and mask_id there, and its edit."""

_EDITS = "_made_by/{version}.txt"  # the files of the edits that it is made from: more come while it is written

_BY_A_PERSON = 1.0  # the scores of such a mask, so that no threshold drops it
_FACTS = ("height", "width", "bbox_x", "bbox_y", "bbox_w", "bbox_h", "area", "counts")
_REASONS = ("iou", "stability", "edge", "nms", "area")  # of rejection


@dataclass(frozen=True, slots=True, kw_only=True)
class Applied:
    """What came of it. Counts of masks are those of the images in the result."""

    version: str
    totals: Totals
    made: int  # masks that people made, replacements included
    gone: int  # masks of the dataset that they deleted or replaced
    done: int  # images that somebody has gone through
    people: tuple[str, ...]


def apply_corrections(
    root: str,
    destination: str,
    *,
    version: str | None = None,
    only_done: bool = False,
    on_slice: Callable[[CommitRecord], None] = lambda record: None,
) -> Applied:
    """Writes the dataset `root` as people have corrected it. Goes on where an earlier call stopped.

    version: of the corrections; by default all that are there now, or those that an unfinished `destination` began
    with. only_done: without the images that nobody has gone through to the end.
    Raises DatasetError where there is no dataset, no correction or no image that is done, PlanMismatch where the
    destination is another job's.
    """
    plan = read_plan(root)
    if plan is None:
        raise DatasetError(f"no dataset at {root}: it has no _plan/job.json")
    dataset = MaskDataset(root)
    if not dataset.complete:
        raise DatasetError(f"{root} is not complete: finish it with the generate command, then apply its corrections")
    book = EditBook(root, plan.fingerprint)
    names = _names(book, destination, version or _begun(destination))
    if not names:
        raise DatasetError(f"{root} has no corrections: make them on the page /correct of data-engine view {root}")
    version = version_of(names)
    edits = book.read(names)
    images = {image_id: standing(each[0].n_masks, each) for image_id, each in edits.items()}
    if only_done:
        images = {image_id: image for image_id, image in images.items() if image.done_by}
        if not images:
            raise UsageError(f"no image of {root} is done: D on the page /correct says that one is")
    corrected = _corrected_plan(dataset, plan, version, images if only_done else None)
    _refuse_another(root, destination, corrected)
    put(join(destination, _EDITS.format(version=version)), "\n".join(names).encode())
    put(join(destination, MADE_BY), _made_by(images))

    def fill(source: CommitRecord, writer: SliceWriter) -> Totals:
        totals = Totals()
        for image in dataset.slice(source):
            stands = images.get(image.image_id)
            if only_done and stands is None:
                continue
            if image.row["status"] != "ok":
                writer.add(image.row)
                totals = totals + Totals(images=1, failed=1, errors={image.row["error_type"]: 1})
                continue
            masks = image.masks if stands is None else _masks(image, stands)
            row = _row(image.row, masks.num_rows)
            writer.add(row, {name: masks[name].combine_chunks() for name in _columns(masks)})
            totals = totals + _counted(row)
        return totals

    totals = write_derived(dataset, corrected, destination, fill, on_slice, stage="corrected dataset")
    return _applied(version, totals, images)


def _refuse_another(root: str, destination: str, plan: JobPlan) -> None:
    """Before anything is written there."""
    if input_name(destination) == input_name(root):
        raise UsageError(f"{destination} is the dataset itself: choose another place for the corrected one")
    stands = read_plan(destination)
    if stands is not None:
        stands.refuse_unless_same(plan, destination)


def _names(book: EditBook, destination: str, version: str | None) -> list[str]:
    """Of the files of the edits of a version (None: all), as an earlier call has noted them, else as they are there."""
    if version is None:
        return book.names()
    try:
        noted = read_bytes(join(destination, _EDITS.format(version=version))).decode().split("\n")
    except (FileNotFoundError, NotADirectoryError, UnicodeDecodeError):
        noted = []
    return noted if noted and version_of(noted) == version else book.names(version)


def _begun(destination: str) -> str | None:
    """The version that an unfinished destination is being written from."""
    plan = read_plan(destination)
    if plan is None or plan.replayed_from is None or read_manifest(destination) is not None:
        return None
    return plan.replayed_from.get("corrections")


def _corrected_plan(dataset: MaskDataset, plan: JobPlan, version: str, only: Mapping[str, Standing] | None) -> JobPlan:
    """As of a replay: the input and the model are the same, the masks are not. Rejects do not come along."""
    config = override_settings(plan.config, (), f"the plan of {dataset.root}")
    output = config.output.model_copy(
        update={"keep_rejects": 0.0, "reject_floor_iou": None, "reject_floor_stability": None}
    )
    return replace(
        plan,
        config=config.model_copy(update={"output": output}).content() if config.output.keep_rejects else plan.config,
        shards=plan.shards if only is None else kept_shards(dataset, plan, only.__contains__),
        replayed_from={
            "dataset": input_name(dataset.root),
            "fingerprint": plan.fingerprint,
            "keep_rejects": 1 if only is None else 0,  # 1: all images are in it, in their order
            "corrections": version,
            "only_done": only is not None,
        },
    )


def _masks(image: DatasetImage, stands: Standing) -> pa.Table:
    """The masks that stand, in order, as columns of MASKS. Raises DatasetError for edits of other masks."""
    rows = image.masks.to_pylist()
    kept = []
    for key, edit in stands.masks.items():
        if edit is not None:
            kept.append(_mask_row(image, edit))
        elif isinstance(key, int) and key < len(rows):
            kept.append(rows[key])
        else:
            raise DatasetError(f"the corrections of {image.image_id} are of more masks than the {len(rows)} it has")
    for number, row in enumerate(kept):
        row["mask_id"] = number
    return pa.Table.from_pylist(kept, MASKS)


def _mask_row(image: DatasetImage, edit: Edit) -> dict[str, Any]:
    if (edit.height, edit.width) != (image.row["height"], image.row["width"]):
        raise DatasetError(
            f"{image.image_id}: edit {edit.edit_id} is of an image of {edit.width} x {edit.height} pixels"
        )
    x, y = _click(edit)
    return {
        "image_id": image.image_id,
        **{name: getattr(edit, name) for name in _FACTS},
        "predicted_iou": _BY_A_PERSON,
        "stability_score": _BY_A_PERSON,
        "point_x": x,
        "point_y": y,
        "crop_x": 0,
        "crop_y": 0,
        "crop_w": edit.width,
        "crop_h": edit.height,
        "crop_layer": 0,
    }


def _click(edit: Edit) -> tuple[float, float]:
    """The first click on the thing, else the middle of the box; of a mask that was only painted, that of its box."""
    points = list(zip(edit.point_x or (), edit.point_y or (), edit.point_label or (), strict=True))
    first = next(((x, y) for x, y, label in points if label == 1), None)
    if first is not None:
        return first
    corners = [(x, y) for x, y, label in points if label in (2, 3)]
    if not corners:
        return (edit.bbox_x or 0) + (edit.bbox_w or 0) / 2, (edit.bbox_y or 0) + (edit.bbox_h or 0) / 2
    return sum(x for x, _ in corners) / 2, sum(y for _, y in corners) / 2


def _columns(masks: pa.Table) -> list[str]:
    return [name for name in MASKS.names if name not in ("image_id", "mask_id")] if masks.num_rows else []


def _row(row: Mapping[str, Any], n_masks: int) -> dict[str, Any]:
    """Candidates are what stayed and what was rejected, as everywhere."""
    rejected = sum(row[f"n_rejected_{reason}"] for reason in _REASONS)
    return {**row, "n_masks": n_masks, "n_candidates": n_masks + rejected}


def _counted(row: Mapping[str, Any]) -> Totals:
    rejected = {
        f"rejected_{reason}": row[f"n_rejected_{reason}"] for reason in ("iou", "stability", "edge", "nms", "area")
    }
    return Totals(images=1, masks=row["n_masks"], candidates=row["n_candidates"], **rejected)


def _made_by(images: Mapping[str, Standing]) -> bytes:
    rows = [
        {**asdict(edit), "image_id": image_id, "mask_id": number}
        for image_id, stands in sorted(images.items())
        for number, edit in enumerate(stands.masks.values())
        if edit is not None
    ]
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, EDITS), sink, compression="zstd", write_page_checksum=True)
    return sink.getvalue()


def _applied(version: str, totals: Totals, images: Mapping[str, Standing]) -> Applied:
    edits = [edit for stands in images.values() for edit in stands.masks.values() if edit is not None]
    return Applied(
        version=version,
        totals=totals,
        made=len(edits),
        gone=sum(stands.gone for stands in images.values()),
        done=sum(bool(stands.done_by) for stands in images.values()),
        people=tuple(sorted({edit.who for edit in edits} | {who for s in images.values() for who in s.done_by})),
    )
