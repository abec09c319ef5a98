"""The least work that masking an image takes, and the seconds that the machine needs for it at best.

Operations are those of products, 2 a multiply-add; sums, norms and exponentials are not counted. Of every product the
cheapest exact form known is taken (docs/performance.md): attention projections applied where there are fewer rows,
those that all prompts of a view share taken once, no window padding, masks drawn only of prompts that have one above
the predicted-IoU threshold. Bytes are what must pass through memory even if everything that can be fused is: weights
once an image, of a prompt its own image embedding, written and read once, and the logits of masks that are drawn.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from data_engine.bench.machine import Attainable
from data_engine.sam.model import SamArchitecture
from data_engine.sam.segmenter import Precision

_FLOAT = 4  # bytes
_UPSAMPLE_OPERATIONS = 9  # a pixel: three taps along one side, the others shared; three comparisons
_PROMPT_TOKENS = 2  # a click, and "not a point"


@dataclass(frozen=True, slots=True)
class Work:
    operations: float = 0.0
    bytes: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(self.operations + other.operations, self.bytes + other.bytes)

    def __mul__(self, times: float) -> Work:
        return Work(self.operations * times, self.bytes * times)


@dataclass(frozen=True, slots=True, kw_only=True)
class Amounts:
    """How much of each there is in an image."""

    views: float
    prompts: float
    drawn: float  # masks above the predicted-IoU threshold
    region: float  # pixels of the box of a mask


@dataclass(frozen=True, slots=True)
class Floor:
    work: Work
    number_format: str  # of the products
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        return {
            "operations": round(self.work.operations),
            "bytes": round(self.work.bytes),
            "format": self.number_format,
            "seconds": self.seconds,
        }


def number_formats(precision: Precision, device_type: str) -> tuple[str, str]:
    """What the image encoder's products and the mask decoder's are computed in."""
    if precision == "reference":
        return "float32", "float32"
    return "bfloat16", "tf32" if device_type == "cuda" else "float32"


def floors(a: SamArchitecture, amounts: Amounts, formats: tuple[str, str], attainable: Attainable) -> dict[str, Floor]:
    """By stage, for one image."""
    encoder, decoder = formats
    value = 2 if encoder == "bfloat16" else _FLOAT
    works = {
        "encode": (encoder_work(a) * amounts.views + Work(bytes=value * encoder_weights(a)), encoder),
        "prompt decode": (view_work(a) * amounts.views + prompt_work(a) * amounts.prompts, decoder),
        "masks": (drawing_work(a, amounts.drawn), decoder),
        "upsample + score": (upsampling_work(a, amounts.region) * amounts.drawn, "float32"),
    }
    return {
        stage: Floor(
            work,
            number_format,
            max(work.operations / attainable.operations[number_format], work.bytes / attainable.bandwidth),
        )
        for stage, (work, number_format) in works.items()
    }


def shares(found: Mapping[str, Floor], stages: Mapping[str, float], seconds: float) -> dict[str, float]:
    """Of what was measured, how much the floor is: by stage, and of the whole as "total"."""
    of_stages = {stage: floor.seconds / stages[stage] for stage, floor in found.items() if stages.get(stage)}
    return {**of_stages, "total": sum(floor.seconds for floor in found.values()) / seconds}


def encoder_weights(a: SamArchitecture) -> int:
    """Numbers in the products' weights and the positional tables."""
    block = 4 * a.embed_dim**2 + 2 * a.embed_dim * a.mlp_dim
    ends = 3 * a.patch_size**2 * a.embed_dim + a.embed_dim * a.dim + 9 * a.dim**2
    return a.depth * block + ends + a.grid**2 * a.embed_dim


def encoder_work(a: SamArchitecture) -> Work:
    """One view, without the weights' bytes."""
    cells, width = a.grid**2, a.embed_dim
    operations = 2 * cells * a.depth * (4 * width**2 + 2 * width * a.mlp_dim)
    for block in range(a.depth):
        span = a.grid if block in a.global_blocks else a.window_size
        operations += 2 * cells * width * (2 * span**2 + 2 * span)  # scores and sums; relative rows and columns
    operations += 2 * cells * (3 * a.patch_size**2 * width + width * a.dim + 9 * a.dim**2)
    return Work(operations, 3 * a.image_size**2 + _FLOAT * cells * a.dim)


def _sizes(a: SamArchitecture) -> tuple[int, int, int, int]:
    """cells, channels, channels inside of cross attention, tokens."""
    return a.grid**2, a.dim, a.dim // a.attention_downsample, 1 + a.num_masks + _PROMPT_TOKENS


def view_work(a: SamArchitecture) -> Work:
    """What all prompts of a view share: the image's three projections in the first layer."""
    cells, dim, inner, _ = _sizes(a)
    return Work(3 * 2 * cells * dim * inner, _FLOAT * cells * dim)


def prompt_work(a: SamArchitecture) -> Work:
    """One click, up to its predicted IoU."""
    cells, dim, inner, tokens = _sizes(a)
    operations = 0
    for layer in range(a.decoder_depth):
        operations += _self_attention(tokens, dim) + 2 * 2 * tokens * dim * a.decoder_mlp_dim
        operations += 4 * 2 * tokens * dim * inner  # of the tokens: two projections in, out, and two more
        operations += _gather(a, tokens, shared=layer == 0) + _scatter(a, tokens, shared=layer == 0)
    operations += 2 * 2 * dim * inner + _gather(a, 1, shared=False)
    hidden = a.iou_hidden_dim
    operations += 2 * (dim * hidden + (a.iou_depth - 2) * hidden**2 + hidden * a.num_masks)
    return Work(operations, 2 * _FLOAT * cells * dim)


def _self_attention(tokens: int, dim: int) -> int:
    return 4 * 2 * tokens * dim**2 + 2 * 2 * tokens**2 * dim


def _gather(a: SamArchitecture, tokens: int, *, shared: bool) -> int:
    """Tokens attend to the image, their own projections apart."""
    cells, dim, inner, _ = _sizes(a)
    projected = 2 * 2 * tokens * cells * inner
    if shared:
        return projected
    absorbed = 2 * 2 * tokens * a.decoder_heads * cells * dim + 2 * 2 * tokens * inner * dim
    return min(absorbed, projected + 2 * 2 * cells * dim * inner)


def _scatter(a: SamArchitecture, tokens: int, *, shared: bool) -> int:
    """The image attends to tokens, their own projections apart."""
    cells, dim, inner, _ = _sizes(a)
    projected = 2 * tokens * cells * inner
    absorbed = 2 * tokens * a.decoder_heads * cells * dim + 2 * tokens * inner * dim
    scores = projected if shared else min(absorbed, projected + 2 * cells * dim * inner)
    return scores + min(absorbed, projected + 2 * cells * inner * dim)


def drawing_work(a: SamArchitecture, masks: float) -> Work:
    """Some masks in low resolution. At best all masks of a click are wanted, and share their upscaling."""
    cells, dim, inner, _ = _sizes(a)
    prompts = masks / max(1, a.num_masks - 1)
    upscaling = 3 * cells * dim**2
    look = 2 * 2 * dim * inner + _gather(a, 1, shared=False) + 2 * (2 * dim**2 + dim * dim // 8)
    mask = look + 2 * 16 * cells * dim // 8
    return Work(prompts * upscaling + masks * mask, _FLOAT * cells * (prompts * dim + masks * 16))


def upsampling_work(a: SamArchitecture, region: float) -> Work:
    """One mask: its logits read once, the pixels of its box computed once and not stored."""
    return Work(_UPSAMPLE_OPERATIONS * region, _FLOAT * 16 * a.grid**2)
