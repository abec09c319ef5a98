"""What a training run can be told. Unknown keys are errors, so a misspelt setting cannot be ignored."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import yaml
from pydantic import TypeAdapter, ValidationError

from data_engine.errors import ConfigError
from data_engine.sam.model import SamArchitecture

_FORBID = {"extra": "forbid"}


@dataclass(frozen=True, slots=True, kw_only=True)
class DataConfig:
    photographs: Path
    """Folder of JPEGs that training may use; textures/ in it holds pictures that are all texture."""
    photograph_share: float = 0.4
    """How many of the images are views of photographs; the others are procedural scenes."""
    clicks: int = 18
    boxes: int = 6
    """Prompts on each image."""
    grid_share: float = 0.5
    """How many of the clicks are points of a regular grid; the others are inside regions chosen uniformly."""
    textures: int = 160
    """Procedural textures in the bank."""
    workers: int = 1
    """Processes that draw scenes."""

    __pydantic_config__ = _FORBID


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    architecture: SamArchitecture
    data: DataConfig
    start: Path | None = None
    """Weights to start from, of the same architecture at this input or a smaller one; None: from nothing."""
    start_zoom: float = 1.0
    """How much coordinates are spread when the input grows: see enlarge.py."""
    seed: int = 0
    steps: int = 20000
    minutes: float | None = None
    """Stop after so much time, if the steps are not done by then. The schedule follows whichever is nearer its end."""
    images_per_step: int = 8
    learning_rate: float = 6e-4
    weight_decay: float = 0.05
    warmup_steps: int = 400
    decay_share: float = 0.25
    """The learning rate is constant after the warm-up, then falls linearly to zero over this share of the run."""
    gradient_clip: float = 1.0
    ema_decay: float = 0.999
    focal_weight: float = 20.0
    dice_weight: float = 1.0
    iou_weight: float = 1.0
    affinity_weight: float = 0.0
    """Weight of the loss of `affinity.py`, beside the decoder's."""
    affinity_pixels: int = 64
    """Pixels of each image that it asks for."""
    refine_share: float = 0.2
    """Share of the images whose clicks get a second round: a further click where the first answer was wrong."""
    compute_dtype: str = "bfloat16"
    """Type of the activations; weights, losses and optimiser state are float32."""
    checkpoint_every_s: float = 240.0
    log_every: int = 20

    __pydantic_config__ = _FORBID


def load_config(path: Path) -> TrainConfig:
    """Reads a YAML file. Raises ConfigError naming the file and every setting that is wrong."""
    try:
        values = yaml.safe_load(path.read_text())
        return TypeAdapter(TrainConfig).validate_python(values)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'the file'}: {e['msg']}" for e in error.errors())
        raise ConfigError(f"{path}: {problems}") from None
