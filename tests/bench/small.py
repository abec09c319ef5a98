"""A SAM small enough to be measured in seconds, as a checkpoint file, and a photograph to measure on."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
from safetensors.torch import save_file

from data_engine.bench.random_sam import calibrated
from data_engine.sam.model import SamArchitecture

PHOTOGRAPHS = Path(__file__).parents[2] / "examples" / "photos"
SMALL = SamArchitecture(
    embed_dim=64,
    depth=3,
    num_heads=2,
    mlp_dim=256,
    global_blocks=(1,),
    image_size=256,
    window_size=5,
    dim=64,
    decoder_mlp_dim=128,
    iou_hidden_dim=64,
)


def small_checkpoint(folder: Path) -> str:
    path = folder / "small.safetensors"
    save_file({name: value.contiguous() for name, value in calibrated(SMALL).state_dict().items()}, path)
    return str(path)


def needs_segment_anything() -> None:
    """Skips the test without it. To import it here would fail where there is no torchvision."""
    if find_spec("segment_anything") is None:
        pytest.skip("segment-anything is not installed")
