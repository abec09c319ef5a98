"""How good a click is: python -m data_engine.train.evaluate --model starter --bsds DIR --coco DIR --output FILE

Every ground-truth region gets one click, at the deepest point of its inside. Measured is the IoU of the answer with the
region: of the mask with the highest predicted IoU, and of the best of the three. Baselines answer the same clicks:
Felzenszwalb regions and a flood fill by colour, each at the best of three settings chosen with the ground truth, which
favours them as the best of three favours the model.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from pycocotools.coco import COCO
from scipy import ndimage
from skimage.color import rgb2lab
from skimage.segmentation import felzenszwalb

from data_engine.sam.predictor import SamPredictor
from data_engine.sam.segmenter import load_segmenter

_SMALLEST_SHARE = 0.001  # of the image: smaller regions are not asked for
_FELZENSZWALB_SCALES = (100, 300, 1000)
_FLOOD_TOLERANCES = (6.0, 12.0, 24.0)  # in CIE Lab

Annotated = Iterator[tuple[np.ndarray, np.ndarray]]  # HxWx3 uint8, NxHxW bool


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m data_engine.train.evaluate", description=__doc__)
    parser.add_argument("--model", default="starter", help="a known model or a checkpoint file")
    parser.add_argument("--bsds", type=Path, help="folder with images/*.jpg and segments/*_A.png (ids by annotator A)")
    parser.add_argument("--coco", type=Path, help="folder with images/ and instances.json")
    parser.add_argument("--leave-out", type=Path, help="folder of training photographs, coco-<name>.jpg")
    parser.add_argument("--output", type=Path, required=True, help="JSON file of results")
    arguments = parser.parse_args()
    segmenter = load_segmenter(arguments.model)
    assert segmenter.checkpoint is not None
    result: dict[str, object] = {"model": Path(arguments.model).name, "sha256": segmenter.checkpoint.sha256}
    if arguments.bsds:
        result["bsds500_val"] = measure(SamPredictor(segmenter), bsds(arguments.bsds))
    if arguments.coco:
        seen = (
            {path.name.removeprefix("coco-") for path in arguments.leave_out.iterdir()}
            if arguments.leave_out
            else set()
        )
        result["coco"] = measure(SamPredictor(segmenter), coco(arguments.coco, seen))
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))  # noqa: T201 - a command's result


def measure(predictor: SamPredictor, images: Annotated) -> dict[str, float]:
    """Counts, and mean IoU of every way to answer."""
    ious: dict[str, list[np.ndarray]] = {}
    count = 0
    for pixels, regions in images:
        count += 1
        clicks = np.array([deepest_point(region) for region in regions])
        for name, values in answers(predictor, pixels, regions, clicks).items():
            ious.setdefault(name, []).append(values)
    clicks_made = sum(map(len, ious["model_best_of_three"]))
    means = {name: round(float(np.concatenate(values).mean()), 4) for name, values in ious.items()}
    return {"images": count, "clicks": clicks_made, **means}


def answers(
    predictor: SamPredictor, pixels: np.ndarray, regions: np.ndarray, clicks: np.ndarray
) -> dict[str, np.ndarray]:
    """IoU of each answer with the region that was clicked: N each."""
    predictor.set_image(pixels)
    chosen, best = [], []
    for region, click in zip(regions, clicks, strict=True):
        masks, scores, _ = predictor.predict(point_coords=click[None], point_labels=np.ones(1))
        each = iou(masks, region)
        chosen.append(each[scores.argmax()])
        best.append(each.max())
    return {
        "model_highest_predicted_iou": np.array(chosen),
        "model_best_of_three": np.array(best),
        "felzenszwalb_best_of_three_scales": felzenszwalb_answers(pixels, regions, clicks),
        "flood_fill_best_of_three_tolerances": flood_answers(pixels, regions, clicks),
    }


def felzenszwalb_answers(pixels: np.ndarray, regions: np.ndarray, clicks: np.ndarray) -> np.ndarray:
    best = np.zeros(len(regions))
    for scale in _FELZENSZWALB_SCALES:
        labels = felzenszwalb(pixels, scale=scale, sigma=0.8, min_size=50)
        masks = np.stack([labels == labels[y, x] for x, y in clicks])
        best = np.maximum(best, iou(masks, regions))
    return best


def flood_answers(pixels: np.ndarray, regions: np.ndarray, clicks: np.ndarray) -> np.ndarray:
    lab = rgb2lab(pixels)
    best = np.zeros(len(regions))
    for i, (x, y) in enumerate(clicks):
        distance = np.linalg.norm(lab - lab[y, x], axis=2)
        for tolerance in _FLOOD_TOLERANCES:
            labels, _ = ndimage.label(distance <= tolerance)
            best[i] = max(best[i], float(iou(labels == labels[y, x], regions[i])))
    return best


def iou(masks: np.ndarray, regions: np.ndarray) -> np.ndarray:
    """...xHxW bool, either broadcast against the other -> ... float."""
    both = (masks & regions).sum((-2, -1))
    return both / np.maximum((masks | regions).sum((-2, -1)), 1)


def deepest_point(region: np.ndarray) -> tuple[int, int]:
    """(x, y) of the pixel of a HxW mask that is farthest from its outside."""
    depth = ndimage.distance_transform_edt(np.pad(region, 1))[1:-1, 1:-1]
    y, x = np.unravel_index(depth.argmax(), depth.shape)
    return int(x), int(y)


def bsds(folder: Path) -> Annotated:
    """Images with the regions that their first annotator drew."""
    for path in sorted((folder / "images").glob("*.jpg")):
        ids = np.asarray(Image.open(sorted((folder / "segments").glob(f"{path.stem}_*.png"))[0]))
        yield from _large_enough(path, np.stack([ids == number for number in np.unique(ids)]))


def coco(folder: Path, leave_out: set[str]) -> Annotated:
    """Images with their objects, crowds left out."""
    annotations = COCO(folder / "instances.json")
    for image in annotations.loadImgs(sorted(annotations.getImgIds())):
        objects = annotations.loadAnns(annotations.getAnnIds(imgIds=image["id"], iscrowd=False))
        if objects and image["file_name"] not in leave_out:
            masks = np.stack([annotations.annToMask(each) for each in objects]).astype(bool)
            yield from _large_enough(folder / "images" / image["file_name"], masks)


def _large_enough(path: Path, regions: np.ndarray) -> Annotated:
    kept = regions[regions.mean((1, 2)) >= _SMALLEST_SHARE]
    if len(kept):
        yield np.asarray(Image.open(path).convert("RGB")), kept


if __name__ == "__main__":
    with torch.inference_mode():
        main()
