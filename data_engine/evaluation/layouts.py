"""Where photographs and their masks lie, and which reader they need.

images/ + instances.json    COCO's JSON: polygons or run lengths, crowds
images/ + segments/         PNGs of region numbers, 0 for none, of the same stem (photo.png, or the first photo_*.png)
photos/ + a dataset         the masks of one of data-engine's own datasets
"""

from __future__ import annotations

from pathlib import Path

from data_engine.dataset.commits import PLAN_FILE
from data_engine.errors import SourceError, UsageError
from data_engine.evaluation.coco_truth import coco_truth
from data_engine.evaluation.dataset_truth import dataset_truth
from data_engine.evaluation.ground_truth import GroundTruth
from data_engine.evaluation.id_map_truth import id_map_truth
from data_engine.storage import is_local


def open_ground_truth(data: str, ground_truth: str | None = None) -> GroundTruth:
    """A folder of photographs (or with images/ in it), and where its masks are if not beside them.

    Raises UsageError where there is nothing to go by, SourceError and DatasetError for what cannot be used.
    """
    folder = Path(data)
    if not folder.is_dir():
        remedy = (
            "give a folder of photographs" if is_local(data) else "copy it here first: measuring reads local folders"
        )
        raise UsageError(f"{data} is not a folder: {remedy}")
    images = folder / "images" if (folder / "images").is_dir() else folder
    truth = Path(ground_truth) if ground_truth is not None else _beside(folder)
    if truth.suffix.lower() == ".json":
        found = coco_truth(images, truth)
    elif ground_truth is not None and (not is_local(ground_truth) or (truth / PLAN_FILE).is_file()):
        found = dataset_truth(images, ground_truth)
    else:
        found = id_map_truth(images, truth)
    if not found.entries:
        raise SourceError(f"no image of {images} has a mask in {found.source}: check that the names are the same")
    return found


def _beside(folder: Path) -> Path:
    if (folder / "instances.json").is_file():
        return folder / "instances.json"
    if (folder / "segments").is_dir():
        return folder / "segments"
    raise UsageError(
        f"{folder} has no instances.json and no segments/ beside its images: "
        "say where the masks are with --ground-truth (COCO JSON, folder of id maps, or a dataset)"
    )
