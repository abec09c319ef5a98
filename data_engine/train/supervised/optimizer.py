"""AdamW as SAM uses it: which weights decay, how fast each layer learns, and how the rate falls."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterator

import torch
from torch import nn

from data_engine.sam.model import Sam
from data_engine.train.supervised.settings import OptimizerSettings
from data_engine.train.weight_decay import is_decayed

_BLOCK = re.compile(r"image_encoder\.blocks\.(\d+)\.")


def make_optimizer(model: Sam, settings: OptimizerSettings) -> torch.optim.AdamW:
    """Of all parameters that have gradients. A group's `scale` is its share of the learning rate."""
    groups: dict[tuple[float, float], list[nn.Parameter]] = defaultdict(list)
    for name, parameter in trained_parameters(model):
        decay = settings.weight_decay if is_decayed(name, parameter) else 0.0
        groups[layer_scale(name, model.architecture.depth, settings.layer_decay), decay].append(parameter)
    return torch.optim.AdamW(
        [{"params": group, "weight_decay": decay, "scale": scale} for (scale, decay), group in groups.items()],
        lr=settings.learning_rate,
        betas=settings.betas,
    )


def trained_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    return ((name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad)


def layer_scale(name: str, depth: int, decay: float) -> float:
    """Layer-wise learning rates (arXiv 2106.08254): 1 after the encoder's blocks, `decay` times less a block before."""
    if match := _BLOCK.match(name):
        return decay ** (depth - int(match[1]))
    if name.startswith(("image_encoder.patch_embed", "image_encoder.pos_embed")):
        return decay ** (depth + 1)
    return 1.0


def learning_rate(settings: OptimizerSettings, step: int, steps: int) -> float:
    """Of step number `step`, counted from 0, of `steps`: linear warm-up, then the schedule."""
    warmup = min(1.0, (step + 1) / max(1, settings.warmup_steps))
    share = step / steps
    if settings.schedule == "step":
        factor = settings.drop_factor ** sum(share >= at for at in settings.drops)
    elif settings.schedule == "cosine":
        factor = (1 + math.cos(math.pi * share)) / 2
    else:
        factor = 1.0
    return settings.learning_rate * warmup * factor
