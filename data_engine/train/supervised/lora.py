"""Low-rank adapters on the image encoder's attention, by `peft`, and the plain weights that they amount to."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from data_engine.errors import UsageError
from data_engine.sam.model import Sam
from data_engine.train.supervised.settings import LoraSettings

_ADAPTER = "default"  # peft's name for the only one


def add_lora(model: Sam, settings: LoraSettings) -> None:
    """Puts adapters into the encoder's attention layers, in place. They start as no change at all."""
    peft = _peft()
    layers = "|".join(settings.layers)
    config = peft.LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=rf"image_encoder\.blocks\.\d+\.attn\.({layers})",
    )
    peft.inject_adapter_in_model(config, model, adapter_name=_ADAPTER)


def is_lora(parameter_name: str) -> bool:
    return ".lora_" in parameter_name


def merged_state(model: Sam) -> dict[str, Tensor]:
    """The state dict of the plain SAM that computes the same: adapters added to the weights that they adapt."""
    state = {name: tensor.detach() for name, tensor in model.state_dict().items() if not is_lora(name)}
    merged = {name.replace(".base_layer", ""): tensor for name, tensor in state.items()}
    for name, module in model.named_modules():
        if hasattr(module, "get_delta_weight"):
            adapter: Any = module
            key = f"{name}.weight"
            merged[key] = merged[key] + adapter.get_delta_weight(_ADAPTER).detach().to(merged[key].dtype)
    return merged


def _peft() -> Any:
    try:
        import peft
    except ImportError:
        raise UsageError("model.lora needs peft: pip install 'data-engine[train]'") from None
    return peft
