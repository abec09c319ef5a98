"""Where photographs and their masks lie, and which reader they need.

images/ + instances.json    COCO's JSON: polygons or run lengths, crowds
images/ + segments/         PNGs of region numbers, 0 for none, of the same stem (photo.png, or the first photo_*.png)
photos/ + a dataset         the masks of one of data-engine's own datasets
"""

from __future__ import annotations

from data_engine.dataset.commits import PLAN_FILE
from data_engine.errors import SourceError, UsageError
from data_engine.evaluation.coco_truth import coco_truth
from data_engine.evaluation.dataset_truth import dataset_truth
from data_engine.evaluation.ground_truth import GroundTruth
from data_engine.evaluation.id_map_truth import id_map_truth
from data_engine.evaluation.photographs import images_of
from data_engine.evaluation.places import is_folder, is_there, over_http
from data_engine.signed_urls import without_query
from data_engine.storage import join, redact

COCO_FILES = ("instances.json", "instances.json.gz")


def open_ground_truth(data: str, ground_truth: str | None = None) -> GroundTruth:
    """A folder of photographs (or with images/ in it), and where its masks are if not beside them: paths or URLs.

    Raises UsageError where there is nothing to go by, SourceError and DatasetError for what cannot be used.
    """
    if not over_http(data) and not is_folder(data):
        raise UsageError(f"{redact(data)} is not a folder: give a folder of photographs")
    truth = ground_truth if ground_truth is not None else _beside(data)
    images = images_of(data)
    if is_coco(truth):
        found = coco_truth(images, truth)
    elif ground_truth is not None and is_there(join(truth, PLAN_FILE)):
        found = dataset_truth(images, truth)
    else:
        found = id_map_truth(images, truth)
    if not found.entries:
        raise SourceError(
            f"no image of {redact(images)} has a mask in {found.source}: check that the names are the same"
        )
    return found


def is_coco(uri: str) -> bool:
    """By its name."""
    return without_query(uri).lower().endswith((".json", ".json.gz"))


def coco_file_in(folder: str) -> str | None:
    """COCO's JSON where `export --format coco` puts it."""
    return next((file for name in COCO_FILES if is_there(file := join(folder, name))), None)


def _beside(folder: str) -> str:
    coco = coco_file_in(folder)
    if coco is not None:
        return coco
    if is_folder(join(folder, "segments")):
        return join(folder, "segments")
    raise UsageError(
        f"{redact(folder)} has no instances.json and no segments/ beside its images: "
        "say where the masks are with --ground-truth (COCO JSON, folder of id maps, or a dataset)"
    )
