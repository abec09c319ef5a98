"""Datasets whose masks are known, over real photographs, and the viewer serving them."""

from __future__ import annotations

import hashlib
import io
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import uvicorn
from PIL import Image
from pycocotools import mask as coco

from data_engine.config import load_config
from data_engine.dataset.commits import CommitRecord, Part, Totals
from data_engine.dataset.manifest import make_manifest
from data_engine.dataset.writer import SliceWriter
from data_engine.images.decode import decode
from data_engine.images.fingerprint import sha256
from data_engine.images.shard import ImageError
from data_engine.images.sources import read_shard
from data_engine.pipeline.plan import make_plan, write_plan
from data_engine.viewer.app import create_app
from data_engine.viewer.run import ViewedRun
from data_engine.viewer.server import bind

TOKEN = "the-token-of-the-tests"
EXAMPLES = Path(__file__).parents[2] / "examples" / "photos"
MaskMaker = Callable[[int, int, int], list[np.ndarray]]


def write_photos(folder: Path, side: int = 200, broken: bool = True) -> Path:
    """Six of the bundled photographs, made small; a seventh image that EXIF turns, and one that is broken."""
    folder.mkdir(parents=True)
    for path in sorted(EXAMPLES.glob("*.jpg"))[:6]:
        with Image.open(path) as image:
            image.thumbnail((side, side))
            image.convert("RGB").save(folder / path.name, quality=92)
    exif = Image.Exif()
    exif[0x0112] = 6
    halves = np.zeros((60, 90, 3), np.uint8)
    halves[:, :45] = (250, 20, 20)
    Image.fromarray(halves).save(folder / "turned.jpg", exif=exif, quality=95)
    if broken:
        (folder / "zz-broken.jpg").write_bytes(b"\xff\xd8\xff but no picture")
    return folder


def known_masks(number: int, height: int, width: int, count: int = 5) -> list[np.ndarray]:
    """HxW bool: all, one pixel, a ring, a chessboard, noise, and then discs."""
    rng = np.random.default_rng(number)
    y, x = np.mgrid[:height, :width]
    distance = np.hypot(y - height / 2, x - width / 3)
    one = np.zeros((height, width), bool)
    one[height - 1, width - 1] = True
    masks = [
        np.ones((height, width), bool),
        one,
        (distance < height / 3) & (distance > height / 6),
        (x // 7 + y // 5) % 2 == 0,
        rng.random((height, width)) < 0.3,
    ]
    for _ in range(count - len(masks)):
        cy, cx, r = rng.integers(0, height), rng.integers(0, width), rng.integers(3, height // 3)
        masks.append(np.hypot(y - cy, x - cx) < r)
    return masks[:count]


def build(
    root: Path,
    input_uri: str,
    maker: MaskMaker = known_masks,
    per_commit: int = 3,
    shards: int | None = None,
    overrides: tuple[str, ...] = (),
    kept: Collection[int] | None = None,
) -> None:
    """A dataset with the masks of `maker`; the first scores rise from 0.5, those of the stability fall from 1.

    shards: only so many are committed, and the dataset is not complete. kept: as of a replay, only these images of each
    shard are in it.
    """
    config = load_config("quickstart", list(overrides))
    replayed_from = None if kept is None else {"keep_rejects": 0.5}
    plan = write_plan(str(root), replace(make_plan(input_uri, config), replayed_from=replayed_from))
    records = []
    number = 0
    for planned in plan.shards[:shards]:
        images = list(read_shard(planned.shard, config.input))
        first = 0
        for start in range(0, len(images), per_commit):
            writer = SliceWriter(plan.metadata())
            failed = masks_in_slice = 0
            wanted = [image for image in images[start : start + per_commit] if kept is None or image.index in kept]
            for image in wanted:
                row, columns = _rows(image, planned.id, number, maker, config.input)
                writer.add(row, columns)
                failed += columns is None
                masks_in_slice += row["n_masks"]
                number += 1
            files = writer.finish()
            count = len(wanted)
            last = images[start : start + per_commit][-1]
            records.append(
                CommitRecord(
                    fingerprint=plan.fingerprint,
                    shard=planned.id,
                    slice=start // per_commit,
                    first_image=first,
                    final=last is images[-1],
                    images=_write(root, "images", f"{planned.id}-{start}", files[0]),
                    masks=_write(root, "masks", f"{planned.id}-{start}", files[1]),
                    totals=Totals(images=count, failed=failed, masks=masks_in_slice, candidates=masks_in_slice),
                    owner="o" * 32,
                    attempt="1",
                    next_offset=last.next_offset,
                )
            )
            first += count
            path = root / records[-1].file
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(records[-1].to_json())
    if shards is None:
        manifest, table = make_manifest(plan.fingerprint, records, "o" * 32)
        (root / "_manifest").mkdir()
        (root / manifest.commits.file).write_bytes(table)
        (root / "_manifest.json").write_bytes(replace(manifest).to_json())


def _rows(image, shard, number, maker, settings):
    row = {
        "image_id": image.image_id,
        "uri": image.uri,
        "shard": shard,
        "sha256": sha256(image.data) if image.data else None,
        "phash": None,
        "width": None,
        "height": None,
        "n_masks": 0,
        "n_candidates": 0,
        **{f"n_rejected_{reason}": 0 for reason in ("iou", "stability", "edge", "nms", "area")},
        "status": "failed",
        "error_type": "corrupt",
        "error_message": "its header is damaged",
        "decode_ms": 1.0,
        "generate_ms": None,
    }
    try:
        height, width = decode(image.data, settings).shape[:2]
    except ImageError:
        return row, None
    columns = mask_columns(maker(number, height, width), height, width)
    count = len(columns["counts"])
    row |= {"phash": number, "width": width, "height": height, "n_masks": count, "n_candidates": count, "status": "ok"}
    return row | {"error_type": None, "error_message": None, "generate_ms": 10.0}, columns


def mask_columns(masks: list[np.ndarray], height: int, width: int) -> dict:
    rles = [coco.encode(np.asfortranarray(mask.astype(np.uint8))) for mask in masks]
    boxes = np.array([coco.toBbox(rle) for rle in rles]).astype(int).reshape(-1, 4)
    count = len(masks)
    return {
        "height": [height] * count,
        "width": [width] * count,
        **{f"bbox_{side}": boxes[:, i] for i, side in enumerate("xywh")},
        "area": [int(coco.area(rle)) for rle in rles],
        "predicted_iou": 0.5 + 0.09 * np.arange(count) % 0.5,
        "stability_score": 1 - 0.08 * np.arange(count) % 0.5,
        "point_x": boxes[:, 0] + 0.5,
        "point_y": boxes[:, 1] + 0.5,
        "crop_x": [0] * count,
        "crop_y": [0] * count,
        "crop_w": [width] * count,
        "crop_h": [height] * count,
        "crop_layer": [0] * count,
        "counts": [rle["counts"].decode() for rle in rles],
    }


def _write(root: Path, folder: str, name: str, file) -> Part:
    path = root / folder / f"{name}.parquet"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(file.data)
    return Part(
        file=f"{folder}/{name}.parquet",
        size=len(file.data),
        sha256=hashlib.sha256(file.data).hexdigest(),
        rows=file.rows,
    )


@dataclass(frozen=True)
class Served:
    port: int
    token: str = TOKEN

    @property
    def address(self) -> str:
        """With its token, as the command prints it."""
        return f"http://127.0.0.1:{self.port}/?token={self.token}"


@contextmanager
def served(*roots: Path, port: int = 0, token: str = TOKEN) -> Iterator[Served]:
    """The viewer over one or two datasets, on a free port where none is given."""
    listener = bind(port)
    port = listener.getsockname()[1]
    app = create_app([ViewedRun(str(root)) for root in roots], token, port, once="once")
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="off", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield Served(port, token)
    finally:
        server.should_exit = True
        thread.join(5)
        listener.close()


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))
