"""The model that a training starts from, and which of its weights are trained."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch

from data_engine.errors import CheckpointError, ConfigError
from data_engine.sam.checkpoints import load_checkpoint
from data_engine.sam.model import Sam, Uninitialised
from data_engine.train.initialise import new_model
from data_engine.train.supervised.lora import add_lora, is_lora
from data_engine.train.supervised.settings import TrainingSettings

_DECODER_HEADS = 8  # what a file in segment-anything's layout, which is what is written, can have


@dataclass(frozen=True, slots=True)
class Start:
    name: str
    sha256: str | None  # of the weights; None for random ones
    model: Sam


def starting_model(settings: TrainingSettings) -> Start:
    """On the CPU, adapters added, frozen weights without gradients. Raises CheckpointError and ConfigError."""
    torch.manual_seed(settings.train.seed)
    if settings.model.name is None:
        start = Start("random weights", None, new_model(settings.model.sizes()))
    else:
        checkpoint = load_checkpoint(settings.model.name)
        with Uninitialised():
            model = Sam(checkpoint.architecture)
        model.load_state_dict(checkpoint.state)
        start = Start(checkpoint.name, checkpoint.sha256, model)
    heads = start.model.architecture.decoder_heads
    if heads != _DECODER_HEADS:
        raise CheckpointError(
            f"{start.name} has a decoder of {heads} heads: what is trained is written in segment-anything's layout, "
            f"which is read as {_DECODER_HEADS} heads; start from a model with {_DECODER_HEADS}"
        )
    if settings.model.lora is not None:
        add_lora(start.model, settings.model.lora)
    freeze(start.model, settings.train.frozen)
    return start


def freeze(model: Sam, patterns: tuple[str, ...]) -> None:
    """Parameters whose name matches a pattern (* and ?) get no gradient; adapters always do.

    With adapters, the encoder's own weights are frozen whatever the patterns say. Raises ConfigError for a pattern that
    matches nothing, and if nothing is left to train.
    """
    adapted = any(is_lora(name) for name, _ in model.named_parameters())
    plain = [name.replace(".base_layer", "") for name, _ in model.named_parameters()]
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in plain):
            raise ConfigError(
                f"train.frozen: no parameter is named like {pattern!r}; names are such as {plain[0]!r} or {plain[-1]!r}"
            )
    for name, parameter in model.named_parameters():
        own = name.replace(".base_layer", "")
        frozen = any(fnmatchcase(own, pattern) for pattern in patterns)
        frozen |= adapted and name.startswith("image_encoder.")
        parameter.requires_grad_(is_lora(name) or not frozen)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ConfigError(f"train.frozen {list(patterns)} freezes every weight: leave something to train")
