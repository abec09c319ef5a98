"""Jobs that take a second: a SAM of random weights saved as a checkpoint, small pictures, settings that keep masks."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from safetensors.torch import save_file

from data_engine.config import JobConfig, load_config
from data_engine.dataset.reader import MaskDataset
from data_engine.sam.model import Sam, SamArchitecture

ARCHITECTURE = SamArchitecture(
    embed_dim=32,
    depth=2,
    num_heads=2,
    mlp_dim=64,
    global_blocks=(1,),
    image_size=128,
    window_size=4,
    dim=32,
    mask_hidden_dim=8,
    decoder_mlp_dim=64,
    iou_hidden_dim=32,
)
# Random weights know no good masks: what they make is kept.
KEEP_ALL = (
    "masks.points_per_side=4",
    "masks.pred_iou_thresh=-10",
    "masks.stability_score_thresh=0.0",
    "masks.box_nms_thresh=0.98",
)
TIMINGS = ("decode_ms", "generate_ms")


def save_model(path: Path, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    sam = Sam(ARCHITECTURE)
    torch.nn.init.normal_(sam.image_encoder.pos_embed, std=0.5)
    save_file({name: tensor.contiguous() for name, tensor in sam.state_dict().items()}, path)
    return path


def config_for(model: Path, *overrides: str) -> JobConfig:
    return load_config("reference", [f"model.name={model}", "run.device=cpu", *KEEP_ALL, *overrides])


def picture(seed: int, width: int = 72, height: int = 48, format: str = "JPEG") -> bytes:
    """Coloured discs on a coloured ground."""
    rng = np.random.default_rng(seed)
    image = Image.new("RGB", (width, height), tuple(rng.integers(0, 256, 3).tolist()))
    draw = ImageDraw.Draw(image)
    for _ in range(4):
        x, y, r = rng.integers(0, width), rng.integers(0, height), rng.integers(4, 20)
        draw.ellipse([x - r, y - r, x + r, y + r], fill=tuple(rng.integers(0, 256, 3).tolist()))
    buffer = io.BytesIO()
    image.save(buffer, format)
    return buffer.getvalue()


def write_photos(folder: Path, count: int) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        (folder / f"{i:03d}.jpg").write_bytes(picture(i))
    return folder


def write_tar(path: Path, count: int, first: int = 0, broken: tuple[int, ...] = ()) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for i in range(first, first + count):
            data = b"not a picture" if i in broken else picture(i)
            member = tarfile.TarInfo(f"{i:05d}.jpg")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def rows(output: Path | str) -> tuple[list[dict], list[dict]]:
    """Every row of both tables by id, without timings: what two runs of one job must agree on."""
    dataset = MaskDataset(str(output))
    images = [{k: v for k, v in row.items() if k not in TIMINGS} for row in dataset.images().to_pylist()]
    masks = dataset.masks().to_pylist()
    return sorted(images, key=lambda r: r["image_id"]), sorted(masks, key=lambda r: (r["image_id"], r["mask_id"]))
