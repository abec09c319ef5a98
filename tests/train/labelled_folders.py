"""The same few pictures with masks in every layout that training reads."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image
from pipeline.tiny_job import picture

from data_engine.masks import rle

HEIGHT, WIDTH = 48, 72


def discs(seed: int, count: int) -> list[np.ndarray]:
    """HxW bool masks of one picture."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    return [
        (y - rng.integers(HEIGHT)) ** 2 + (x - rng.integers(WIDTH)) ** 2 <= rng.integers(4, 15) ** 2
        for _ in range(count)
    ]


def annotation(number: int, masks: list[np.ndarray], scores: list[tuple[float, float]] | None = None) -> bytes:
    """An SA-1B JSON."""
    scores = scores or [(0.9, 0.95)] * len(masks)
    runs = [rle.counts_string(rle.encode(mask)) for mask in masks]
    content = {
        "image": {"image_id": number, "file_name": f"sa_{number}.jpg", "height": HEIGHT, "width": WIDTH},
        "annotations": [
            {
                "id": index,
                "segmentation": {"size": [HEIGHT, WIDTH], "counts": counts},
                "area": int(mask.sum()),
                "predicted_iou": iou,
                "stability_score": stability,
            }
            for index, (mask, counts, (iou, stability)) in enumerate(zip(masks, runs, scores, strict=True))
        ],
    }
    return json.dumps(content).encode()


def sa1b_files(numbers: range) -> dict[str, bytes]:
    files = {}
    for number in numbers:
        files[f"sa_{number}.jpg"] = picture(number, WIDTH, HEIGHT)
        files[f"sa_{number}.json"] = annotation(number, discs(number, 1 + number % 4))
    return files


def write_folder(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


def write_tar(path: Path, files: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(f"./{name}")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def write_coco(folder: Path, count: int) -> Path:
    """images/ and instances.json: polygons, run lengths and a crowd; the last image has no object."""
    images, annotations = [], []
    (folder / "images").mkdir(parents=True)
    for number in range(count):
        name = f"{number}.jpg"
        (folder / "images" / name).write_bytes(picture(number, WIDTH, HEIGHT))
        images.append({"id": number, "file_name": name, "height": HEIGHT, "width": WIDTH})
        counts = rle.counts_string(rle.encode(discs(number, 1)[0]))
        runs = {"size": [HEIGHT, WIDTH], "counts": counts}
        common = {"image_id": number, "category_id": 1, "bbox": [0, 0, 1, 1], "area": 1}
        if number < count - 1:
            square = [[5, 5, 25, 5, 25, 25, 5, 25]]
            annotations.append({"id": 3 * number, "iscrowd": 0, "segmentation": square, **common})
            annotations.append({"id": 3 * number + 1, "iscrowd": 0, "segmentation": runs, **common})
        annotations.append({"id": 3 * number + 2, "iscrowd": 1, "segmentation": runs, **common})
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "thing"}]}
    (folder / "instances.json").write_text(json.dumps(content))
    return folder


def write_id_maps(folder: Path, count: int) -> Path:
    for name in ("images", "segments"):
        (folder / name).mkdir(parents=True)
    for number in range(count):
        (folder / "images" / f"{number}.jpg").write_bytes(picture(number, WIDTH, HEIGHT))
        ids = np.zeros((HEIGHT, WIDTH), np.uint16)
        for index, mask in enumerate(discs(number, 3), 300):
            ids[mask] = index
        Image.fromarray(ids).save(folder / "segments" / f"{number}.png")
    return folder
