"""The three parts of SAM put together, and the numbers that say how large each is."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from data_engine.sam.image_encoder import ImageEncoder
from data_engine.sam.mask_decoder import MaskDecoder
from data_engine.sam.prompt_encoder import PromptEncoder

PIXEL_MEAN = (123.675, 116.28, 103.53)
PIXEL_STD = (58.395, 57.12, 57.375)


@dataclass(frozen=True, kw_only=True, slots=True)
class SamArchitecture:
    """Every size in a SAM. The defaults are those that all three released models share."""

    embed_dim: int
    depth: int
    num_heads: int
    mlp_dim: int
    global_blocks: tuple[int, ...]
    image_size: int = 1024
    patch_size: int = 16
    window_size: int = 14
    dim: int = 256
    mask_hidden_dim: int = 16
    decoder_depth: int = 2
    decoder_heads: int = 8
    decoder_mlp_dim: int = 2048
    attention_downsample: int = 2
    num_masks: int = 4
    iou_hidden_dim: int = 256
    iou_depth: int = 3

    @property
    def grid(self) -> int:
        """Side of the image embedding in cells."""
        return self.image_size // self.patch_size

    @classmethod
    def vit(cls, size: str) -> SamArchitecture:
        """The released models' sizes: "b", "l" or "h"."""
        embed_dim, depth, num_heads = {"b": (768, 12, 12), "l": (1024, 24, 16), "h": (1280, 32, 16)}[size]
        every = depth // 4
        return cls(
            embed_dim=embed_dim,
            depth=depth,
            num_heads=num_heads,
            mlp_dim=4 * embed_dim,
            global_blocks=tuple(range(every - 1, depth, every)),
        )

    @classmethod
    def of_state(cls, state: Mapping[str, Tensor], decoder_heads: int = 8) -> SamArchitecture:
        """Reads every size off the shapes of a state dict in segment-anything's layout.

        The decoder's number of heads is the one size that leaves no trace in a shape: all released SAMs have 8.
        Raises KeyError for a missing tensor and ValueError for sizes that contradict each other.
        """

        def shape(key: str, dimensions: int) -> torch.Size:
            found = state[key].shape
            if len(found) != dimensions or 0 in found:
                raise ValueError(f"{key} has shape {tuple(found)}")
            return found

        def count(pattern: str) -> int:
            indices = {int(match[1]) for key in state if (match := re.match(pattern, key))}
            if indices != set(range(len(indices))):
                raise ValueError(f"the layers matching {pattern!r} are not numbered without gaps")
            return len(indices)

        embed_dim, _, patch_size, _ = shape("image_encoder.patch_embed.proj.weight", 4)
        grid = shape("image_encoder.pos_embed", 4)[1]
        depth = count(r"image_encoder\.blocks\.(\d+)\.")
        spans = [(shape(f"image_encoder.blocks.{i}.attn.rel_pos_h", 2)[0] + 1) // 2 for i in range(depth)]
        windows = {span for span in spans if span != grid}
        if len(windows) > 1:
            raise ValueError(f"with {grid} cells a side, its blocks have windows of different sizes {sorted(windows)}")
        head_dim = shape("image_encoder.blocks.0.attn.rel_pos_h", 2)[1]
        dim = shape("image_encoder.neck.0.weight", 4)[0]
        decoder = "mask_decoder.transformer.layers.0."
        inner_dim = shape(decoder + "cross_attn_token_to_image.q_proj.weight", 2)[0]
        if embed_dim % head_dim:
            raise ValueError(f"an encoder of width {embed_dim} has no heads of {head_dim}")
        if dim % inner_dim or inner_dim % decoder_heads:
            raise ValueError(f"a decoder of width {dim}, {inner_dim} in attention, cannot have {decoder_heads} heads")
        return cls(
            embed_dim=embed_dim,
            depth=depth,
            num_heads=embed_dim // head_dim,
            mlp_dim=shape("image_encoder.blocks.0.mlp.lin1.weight", 2)[0],
            global_blocks=tuple(i for i, span in enumerate(spans) if span == grid),
            image_size=grid * patch_size,
            patch_size=patch_size,
            window_size=windows.pop() if windows else grid,
            dim=dim,
            mask_hidden_dim=shape("prompt_encoder.mask_downscaling.3.weight", 4)[0],
            decoder_depth=count(r"mask_decoder\.transformer\.layers\.(\d+)\."),
            decoder_heads=decoder_heads,
            decoder_mlp_dim=shape(decoder + "mlp.lin1.weight", 2)[0],
            attention_downsample=dim // inner_dim,
            num_masks=shape("mask_decoder.mask_tokens.weight", 2)[0],
            iou_hidden_dim=shape("mask_decoder.iou_prediction_head.layers.0.weight", 2)[0],
            iou_depth=count(r"mask_decoder\.iou_prediction_head\.layers\.(\d+)\."),
        )


class Uninitialised(TorchFunctionMode):
    """Modules built inside get no initial weights: a checkpoint will fill them, and drawing them takes seconds."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init":
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return func(*args, **kwargs)


class Sam(nn.Module):
    """The network alone: its state dict is segment-anything's, key for key."""

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(self, architecture: SamArchitecture) -> None:
        super().__init__()
        a = architecture
        self.architecture = a
        self.image_encoder = ImageEncoder(
            image_size=a.image_size,
            patch_size=a.patch_size,
            embed_dim=a.embed_dim,
            depth=a.depth,
            num_heads=a.num_heads,
            mlp_dim=a.mlp_dim,
            window_size=a.window_size,
            global_blocks=a.global_blocks,
            out_dim=a.dim,
        )
        self.prompt_encoder = PromptEncoder(
            dim=a.dim, image_size=a.image_size, grid=a.grid, mask_hidden_dim=a.mask_hidden_dim
        )
        self.mask_decoder = MaskDecoder(
            dim=a.dim,
            grid=a.grid,
            depth=a.decoder_depth,
            num_heads=a.decoder_heads,
            mlp_dim=a.decoder_mlp_dim,
            attention_downsample=a.attention_downsample,
            num_masks=a.num_masks,
            iou_hidden_dim=a.iou_hidden_dim,
            iou_depth=a.iou_depth,
        )
        self.register_buffer("pixel_mean", torch.tensor(PIXEL_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(PIXEL_STD).view(3, 1, 1), persistent=False)

    def normalise(self, pixels: Tensor, sizes: list[tuple[int, int]]) -> Tensor:
        """Pixels Bx3xSxS in [0, 255], image i in the top-left sizes[i] = (height, width) -> encoder input, float32.

        The padding is zero after normalisation, as in the reference.
        """
        x = (pixels.float() - self.pixel_mean) / self.pixel_std
        for image, (height, width) in zip(x, sizes, strict=True):
            image[:, height:].zero_()
            image[:, :, width:].zero_()
        return x
