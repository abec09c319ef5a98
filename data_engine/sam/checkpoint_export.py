"""Writing weights so that segment-anything and transformers load them, and this package again, bit for bit."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from data_engine.errors import CheckpointError, UsageError
from data_engine.sam.atomic_files import Writer, put_file, put_folder
from data_engine.sam.checkpoint_layouts import Layout, to_huggingface
from data_engine.sam.checkpoints import read_checkpoint
from data_engine.sam.digests import sha256_of
from data_engine.sam.model import PIXEL_MEAN, PIXEL_STD, SamArchitecture

Dtype = Literal["float32", "float16", "bfloat16"]

_TORCH_SUFFIXES = (".pth", ".pt")
_DECODER_HEADS = 8  # what every reader of a file without a configuration takes the decoder to have
_DOWNSAMPLE = 2  # transformers' SamTwoWayAttentionBlock ignores its configuration's attention_downsample_rate


@dataclass(frozen=True, slots=True)
class ExportedCheckpoint:
    """What was written, or found to be there already."""

    path: Path  # the file, or transformers' folder
    weights: Path
    sha256: str  # of the weights
    size: int  # of the weights, in bytes
    architecture: SamArchitecture
    dtype: str


def export_checkpoint(
    source: str | Path,
    destination: Path,
    layout: Layout,
    dtype: Dtype | None = None,
    *,
    overwrite: bool = False,
) -> ExportedCheckpoint:
    """Writes any checkpoint that can be loaded (name, file, URL) in `layout`, in the dtypes it has unless told another.

    See `write_checkpoint`. Raises CheckpointError, UsageError and StorageError.
    """
    _check_name(destination, layout)  # before gigabytes are fetched
    stored = read_checkpoint(source)
    return write_checkpoint(stored.architecture, stored.state, destination, layout, dtype, overwrite=overwrite)


def write_checkpoint(
    architecture: SamArchitecture,
    state: Mapping[str, Tensor],
    destination: Path,
    layout: Layout,
    dtype: Dtype | None = None,
    *,
    overwrite: bool = False,
) -> ExportedCheckpoint:
    """Writes weights that are under segment-anything's names.

    segment-anything: one file, a plain state dict; `.pth` or `.pt` as its builders load it, or `.safetensors`.
    transformers: a folder for `SamModel.from_pretrained` and `SamProcessor.from_pretrained`.
    """
    _check_name(destination, layout)
    _check_sizes(architecture, layout)
    tensors = {key: _converted(key, tensor, dtype) for key, tensor in state.items()}
    if layout == "transformers":
        weights = destination / "model.safetensors"
        put_folder(destination, _transformers_files(architecture, to_huggingface(tensors)), overwrite=overwrite)
    else:
        weights = destination
        torch_file = destination.suffix in _TORCH_SUFFIXES
        put_file(destination, _torch(tensors) if torch_file else _safetensors(tensors), overwrite=overwrite)
    return ExportedCheckpoint(
        destination, weights, sha256_of(weights), weights.stat().st_size, architecture, dtype_of(tensors)
    )


def dtype_of(state: Mapping[str, Tensor]) -> str:
    """The dtype of the weights; all of them, the most frequent first, if they differ."""
    names = [str(tensor.dtype).removeprefix("torch.") for tensor in state.values()]
    return ", ".join(sorted(set(names), key=lambda name: (-names.count(name), name)))


def _check_name(destination: Path, layout: Layout) -> None:
    suffixes = (*_TORCH_SUFFIXES, ".safetensors")
    if layout == "segment-anything" and destination.suffix not in suffixes:
        raise UsageError(f"{destination}: segment-anything's layout is a file; name it with .pth at its end")
    if layout == "transformers" and (destination.suffix in suffixes or destination.is_file()):
        raise UsageError(f"{destination}: transformers' layout is a folder; give the name of one")


def _check_sizes(architecture: SamArchitecture, layout: Layout) -> None:
    heads, rate = architecture.decoder_heads, architecture.attention_downsample
    if layout == "segment-anything" and heads != _DECODER_HEADS:
        raise CheckpointError(
            f"a decoder of {heads} heads cannot be exported in segment-anything's layout: it has no place for that "
            f"number and is read as {_DECODER_HEADS}; use transformers' layout"
        )
    if layout == "transformers" and rate != _DOWNSAMPLE:
        raise CheckpointError(
            f"a decoder whose attention is {rate} times narrower than itself cannot be exported in transformers' "
            f"layout: its classes build {_DOWNSAMPLE} whatever the configuration says; use segment-anything's layout"
        )


def _converted(key: str, tensor: Tensor, dtype: Dtype | None) -> Tensor:
    """The tensor alone: contiguous, on the CPU, without the rest of a storage that it is a view of."""
    if not tensor.is_floating_point():
        raise CheckpointError(
            f"{key}, of shape {tuple(tensor.shape)}, is {str(tensor.dtype).removeprefix('torch.')}: quantised weights "
            "cannot be exported; take the checkpoint they were made from"
        )
    plain = tensor.detach().cpu()
    if dtype is not None:
        target = getattr(torch, dtype)
        changed = plain.to(target)
        if torch.isfinite(plain).all() and not torch.isfinite(changed).all():
            raise CheckpointError(
                f"{key}, of shape {tuple(tensor.shape)}, has values up to {plain.abs().max():.3g}, which {dtype} does "
                f"not reach ({torch.finfo(target).max:.3g}): export in float32 or bfloat16"
            )
        plain = changed
    plain = plain.contiguous()
    return plain.clone() if plain.untyped_storage().nbytes() != plain.numel() * plain.element_size() else plain


def _transformers_files(architecture: SamArchitecture, tensors: Mapping[str, Tensor]) -> dict[str, Writer]:
    """The weights last: where they are, the rest is."""
    config = transformers_config(architecture) | {"torch_dtype": dtype_of(tensors).partition(",")[0]}
    return {
        "config.json": _json(config),
        "preprocessor_config.json": _json(transformers_preprocessor_config(architecture)),
        "model.safetensors": _safetensors(tensors, metadata={"format": "pt"}),  # transformers insists on the word
    }


def transformers_config(a: SamArchitecture) -> dict[str, Any]:
    """The `SamConfig` of an architecture, as JSON."""
    size = {"image_size": a.image_size, "patch_size": a.patch_size}
    return {
        "architectures": ["SamModel"],
        "model_type": "sam",
        "vision_config": {
            "model_type": "sam_vision_model",
            **size,
            "hidden_size": a.embed_dim,
            "num_hidden_layers": a.depth,
            "num_attention_heads": a.num_heads,
            "mlp_dim": a.mlp_dim,
            "mlp_ratio": a.mlp_dim / a.embed_dim,
            "global_attn_indexes": list(a.global_blocks),
            "window_size": a.window_size,
            "output_channels": a.dim,
            "num_pos_feats": a.dim // 2,
            "layer_norm_eps": 1e-6,
        },
        "prompt_encoder_config": {
            "model_type": "sam_prompt_encoder",
            **size,
            "hidden_size": a.dim,
            "mask_input_channels": a.mask_hidden_dim,
            "layer_norm_eps": 1e-6,
        },
        "mask_decoder_config": {
            "model_type": "sam_mask_decoder",
            "hidden_size": a.dim,
            "num_hidden_layers": a.decoder_depth,
            "num_attention_heads": a.decoder_heads,
            "mlp_dim": a.decoder_mlp_dim,
            "attention_downsample_rate": a.attention_downsample,
            "num_multimask_outputs": a.num_masks - 1,
            "iou_head_depth": a.iou_depth,
            "iou_head_hidden_dim": a.iou_hidden_dim,
            "layer_norm_eps": 1e-5,  # segment-anything's; transformers' own default is 1e-6
        },
    }


def transformers_preprocessor_config(a: SamArchitecture) -> dict[str, Any]:
    """What `SamProcessor` needs to know, in the file that its old and new versions read."""
    logits = 4 * a.grid
    return {
        "processor_class": "SamProcessor",
        "image_processor_type": "SamImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"longest_edge": a.image_size},
        "resample": 2,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [round(value / 255, 6) for value in PIXEL_MEAN],
        "image_std": [round(value / 255, 6) for value in PIXEL_STD],
        "do_pad": True,
        "pad_size": {"height": a.image_size, "width": a.image_size},
        "mask_size": {"longest_edge": logits},
        "mask_pad_size": {"height": logits, "width": logits},
    }


def _json(content: Mapping[str, Any]) -> Writer:
    def write(path: Path) -> None:
        path.write_text(json.dumps(content, indent=2) + "\n")

    return write


def _torch(tensors: Mapping[str, Tensor]) -> Writer:
    def write(path: Path) -> None:
        try:
            with path.open("wb") as file:
                torch.save(dict(tensors), file)
        except RuntimeError as error:  # torch's writer complains about what the file system said before
            raise error.__context__ if isinstance(error.__context__, OSError) else error from None

    return write


def _safetensors(tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> Writer:
    def write(path: Path) -> None:
        path.touch()
        mode = path.stat().st_mode  # safetensors would leave a file that nobody else can read
        try:
            save_file(_separate(tensors), path, metadata=metadata)
        except SafetensorError as error:
            number = re.search(r"os error (\d+)", str(error))
            raise OSError(int(number[1]), os.strerror(int(number[1]))) if number else error from None
        path.chmod(mode)

    return write


def _separate(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """safetensors store no tensor under two names, as transformers' positional matrix has: the second gets a copy."""
    seen: set[int] = set()
    separate = {}
    for key, tensor in tensors.items():
        separate[key] = tensor.clone() if tensor.data_ptr() in seen else tensor
        seen.add(tensor.data_ptr())
    return separate
