"""A training that takes seconds: a tiny SAM on two photographs of coloured blocks."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from data_engine.sam.model import SamArchitecture
from data_engine.train.__main__ import sample_stream
from data_engine.train.config import DataConfig, TrainConfig
from data_engine.train.samples import SampleStream

ARCHITECTURE = SamArchitecture(
    embed_dim=32,
    depth=2,
    num_heads=2,
    mlp_dim=64,
    global_blocks=(1,),
    image_size=64,
    patch_size=8,
    window_size=4,
    dim=32,
    mask_hidden_dim=8,
    decoder_mlp_dim=32,
    iou_hidden_dim=16,
)


def write_photographs(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for number in range(2):
        blocks = rng.integers(0, 256, (4, 5, 3), np.uint8).repeat(30, 0).repeat(30, 1)
        Image.fromarray(blocks).save(folder / f"{number}.jpg", quality=95)
    return folder


def config_for(folder: Path, **changes: object) -> TrainConfig:
    data = DataConfig(photographs=folder, clicks=4, boxes=2, textures=4, workers=0)
    config = TrainConfig(
        architecture=ARCHITECTURE,
        data=data,
        steps=6,
        images_per_step=2,
        warmup_steps=2,
        compute_dtype="float32",
        log_every=2,
    )
    return replace(config, **changes)  # type: ignore[arg-type]


@cache
def stream_for(folder: Path) -> SampleStream:
    return sample_stream(config_for(folder))
