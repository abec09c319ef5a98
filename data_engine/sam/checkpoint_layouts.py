"""The two layouts in which SAM weights travel: segment-anything's and Hugging Face's `SamModel`.

Ours is segment-anything's. The tensors are the same, only their names differ, so conversion is renaming.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal, TypeVar

Value = TypeVar("Value")
Layout = Literal["segment-anything", "transformers"]

_HF_MATRIX = "shared_image_embedding.positional_embedding"
_HF_ALIAS = "prompt_encoder.shared_embedding.positional_embedding"  # the same tensor, saved a second time
# (segment-anything, Hugging Face): prefixes and parts of names, applied in order.
_PARTS = [
    ("image_encoder.", "vision_encoder."),
    ("patch_embed.proj.", "patch_embed.projection."),
    (".blocks.", ".layers."),
    ("neck.0.", "neck.conv1."),
    ("neck.1.", "neck.layer_norm1."),
    ("neck.2.", "neck.conv2."),
    ("neck.3.", "neck.layer_norm2."),
    ("prompt_encoder.pe_layer.positional_encoding_gaussian_matrix", _HF_MATRIX),
    ("mask_downscaling.0.", "mask_embed.conv1."),
    ("mask_downscaling.1.", "mask_embed.layer_norm1."),
    ("mask_downscaling.3.", "mask_embed.conv2."),
    ("mask_downscaling.4.", "mask_embed.layer_norm2."),
    ("mask_downscaling.6.", "mask_embed.conv3."),
    (".point_embeddings.", ".point_embed."),
    ("output_upscaling.0.", "upscale_conv1."),
    ("output_upscaling.1.", "upscale_layer_norm."),
    ("output_upscaling.3.", "upscale_conv2."),
    (".norm_final_attn.", ".layer_norm_final_attn."),
    (".norm1.", ".layer_norm1."),
    (".norm2.", ".layer_norm2."),
    (".norm3.", ".layer_norm3."),
    (".norm4.", ".layer_norm4."),
]
_MLP = re.compile(r"(mask_decoder\.(?:output_hypernetworks_mlps\.\d+|iou_prediction_head)\.)(.+)\.(weight|bias)")


def is_huggingface(state: Mapping[str, object]) -> bool:
    return any(key.startswith("vision_encoder.") for key in state)


def names_of_the_shared_matrix(state: Mapping[str, object]) -> list[str]:
    """The names under which a Hugging Face state dict has the positional matrix: one or both."""
    return [name for name in (_HF_MATRIX, _HF_ALIAS) if name in state]


def from_huggingface(state: Mapping[str, Value]) -> dict[str, Value]:
    """Hugging Face `SamModel` state dict -> segment-anything's names."""
    renamed = {}
    for key, value in state.items():
        if key == _HF_ALIAS:  # of the two names, a file may hold either or both
            key = _HF_MATRIX
        if match := _MLP.fullmatch(key):
            prefix, layer, kind = match.groups()
            key = f"{prefix}layers.{_mlp_index(state, prefix, layer)}.{kind}"
        else:
            for ours, theirs in _PARTS:
                if key.startswith("mask_decoder.transformer.layers.") and theirs == ".layers.":
                    continue  # the decoder's layers have one name in both
                key = key.replace(theirs, ours)
        renamed[key] = value
    return renamed


def to_huggingface(state: Mapping[str, Value]) -> dict[str, Value]:
    """segment-anything's state dict -> Hugging Face `SamModel` names."""
    renamed = {}
    for key, value in state.items():
        if match := _MLP.fullmatch(key):
            prefix, layer, kind = match.groups()
            key = f"{prefix}{_mlp_name(state, prefix, int(layer.removeprefix('layers.')))}.{kind}"
        else:
            for ours, theirs in _PARTS:
                key = key.replace(ours, theirs)
        renamed[key] = value
    renamed[_HF_ALIAS] = renamed[_HF_MATRIX]
    return renamed


def _mlp_index(state: Mapping[str, object], prefix: str, layer: str) -> int:
    """Hugging Face names an MLP's layers proj_in, layers.0, layers.1, ..., proj_out; segment-anything counts."""
    hidden = sum(key.startswith(prefix + "layers.") and key.endswith(".weight") for key in state)
    if layer == "proj_in":
        return 0
    if layer == "proj_out":
        return hidden + 1
    return int(layer.removeprefix("layers.")) + 1


def _mlp_name(state: Mapping[str, object], prefix: str, index: int) -> str:
    last = sum(key.startswith(prefix) and key.endswith(".weight") for key in state) - 1
    return {0: "proj_in", last: "proj_out"}.get(index, f"layers.{index - 1}")
