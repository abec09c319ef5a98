"""The decoder on a GPU with Triton (see `decoder_kernels`): attention and upscaling, each in one pass over the images.

For precision "fast" alone, as products are in TF32.
"""

from __future__ import annotations

import logging
import math
from functools import lru_cache
from importlib.util import find_spec

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from data_engine.sam.device_errors import is_out_of_memory, loses_device
from data_engine.sam.layers import ChannelLayerNorm

log = logging.getLogger(__name__)

# How ptxas compiles the kernels for 256 channels and 64 rows decides: nothing of them may spill out of the registers.
# Capability 9 (Hopper) has 227 KB of shared memory a processor: 142 and 184 of 255 registers, 147 and 164 KB.
_LARGE = {
    "scatter": {"TILE": 64, "num_warps": 8, "num_stages": 2},
    "gather": {"TILE": 32, "num_warps": 8, "num_stages": 2},
}
# Others have 99 KB or more, and need more registers for the same: 80 and 224 of them, 90 and 98 KB.
_SMALL = {
    "scatter": {"TILE": 32, "num_warps": 8, "num_stages": 2},
    "gather": {"TILE": 16, "num_warps": 8, "num_stages": 1},
}
_DRAW = {"TILE": 64, "num_warps": 8, "num_stages": 1}  # 65 KB; 122 registers on Hopper, 128 before
_SOME = 64  # channels of a piece
_PARTS = 8  # of an image's cells: with 64 prompts, four programs for each of a large GPU's processors
_ROWS = 64  # at most


def suits(image: Tensor) -> bool:
    """Whether the kernels are right for this image NxC or PxNxC, in the precision that is set."""
    if image.device.type != "cuda" or image.dtype != torch.float32 or not torch.backends.cuda.matmul.allow_tf32:
        return False
    if torch.is_autocast_enabled("cuda"):  # the tokens' rows then come in another type than the image
        return False
    return image.shape[-1] in (128, 256) and _work(image.device, image.shape[-1])


class Fused:
    def __init__(self, image: Tensor, positions: Tensor) -> None:
        self.image = image.contiguous()
        self.positions = positions.contiguous()

    def gather(self, rows: Tensor) -> Tensor:
        prompts, count, channels = rows.shape
        cells = len(self.positions)
        if self.image.dim() == 2 or _padded(count) > _ROWS:  # one product for all prompts
            return _plain_gather(rows, self.image, self.positions)
        from data_engine.sam import decoder_kernels

        rows = F.pad(rows, (0, 0, 0, _padded(count) - count)).contiguous()
        most, total = rows.new_empty(2, prompts, _PARTS, rows.shape[1]).unbind()
        pooled = rows.new_empty(prompts, _PARTS, rows.shape[1], channels)
        launch = _launch(rows.device)["gather"]
        part = -(-cells // (_PARTS * launch["TILE"])) * launch["TILE"]
        with torch.cuda.device_of(rows):
            decoder_kernels.gather[(_PARTS, prompts)](
                self.image,
                self.positions,
                rows,
                cells,
                part,
                most,
                total,
                pooled,
                CHANNELS=channels,
                ROWS=rows.shape[1],
                PRECISION="tf32",
                **launch,
            )
        share = (most - most.amax(1, keepdim=True)).exp_()
        pooled = (pooled * share[..., None]).sum(1) / (total * share).sum(1)[..., None]
        return pooled[:, :count]

    def scatter(
        self, rows: Tensor, offset: Tensor, added: Tensor, heads: int, norm: nn.LayerNorm, *, overwrite: bool
    ) -> Tensor:
        prompts, count, channels = rows.shape
        tokens = _padded(count // heads, least=1)
        if heads * tokens > _ROWS or heads * tokens < 16 or heads & (heads - 1):
            return _plain_scatter(self.image, self.positions, rows, offset, added, heads, norm)
        from data_engine.sam import decoder_kernels

        missing = tokens - count // heads
        rows, added = (F.pad(x.unflatten(1, (heads, -1)), (0, 0, 0, missing)).contiguous() for x in (rows, added))
        offset = F.pad(offset.unflatten(1, (heads, -1))[..., 0], (0, missing), value=-torch.inf).contiguous()
        launch = _launch(rows.device)["scatter"]
        cells = len(self.positions)
        shared = self.image.dim() == 2
        answered = self.image if overwrite and not shared else self.image.new_empty(prompts, cells, channels)
        with torch.cuda.device_of(rows):
            decoder_kernels.scatter[(-(-cells // launch["TILE"]), prompts)](
                self.image,
                0 if shared else cells * channels,
                self.positions,
                rows,
                offset,
                added,
                norm.weight,
                norm.bias,
                norm.eps,
                answered,
                cells,
                CHANNELS=channels,
                ROWS=heads * tokens,
                TOKENS=tokens,
                SOME=_SOME,
                PRECISION="tf32",
                **launch,
            )
        return answered


def draw(
    image: Tensor, masks: Tensor, first: nn.ConvTranspose2d, norm: ChannelLayerNorm, second: nn.ConvTranspose2d
) -> Tensor:
    """The upscaling of `MaskDecoder.mask_logits`: image PxNxC, masks PxKx(C/8) -> logits PxKx(4G)x(4G), N = G * G."""
    from data_engine.sam import decoder_kernels

    prompts, cells, channels = image.shape
    grid, count = math.isqrt(cells), masks.shape[1]
    logits = image.new_empty(prompts, count, 4 * grid, 4 * grid)
    with torch.cuda.device_of(image):
        decoder_kernels.draw[(-(-cells // _DRAW["TILE"]), prompts)](
            image.contiguous(),
            masks.contiguous(),
            first.weight.permute(0, 2, 3, 1).contiguous(),
            first.bias,
            norm.weight,
            norm.bias,
            norm.eps,
            second.weight.permute(0, 2, 3, 1).contiguous(),
            second.bias,
            logits,
            grid,
            count,
            CHANNELS=channels,
            SOME=_SOME,
            PRECISION="tf32",
            **_DRAW,
        )
    return logits


def _plain_gather(rows: Tensor, image: Tensor, positions: Tensor) -> Tensor:
    return (rows @ (image + positions).mT).softmax(-1) @ image


def _plain_scatter(
    image: Tensor, positions: Tensor, rows: Tensor, offset: Tensor, added: Tensor, heads: int, norm: nn.LayerNorm
) -> Tensor:
    scores = rows @ (image + positions).mT + offset
    shares = scores.unflatten(1, (heads, -1)).softmax(2).flatten(1, 2)
    return norm(torch.baddbmm(image.expand(len(rows), -1, -1), shares.mT, added))


def _plain_draw(
    image: Tensor, masks: Tensor, first: nn.ConvTranspose2d, norm: ChannelLayerNorm, second: nn.ConvTranspose2d
) -> Tensor:
    grid = math.isqrt(image.shape[1])
    pixels = F.gelu(second(F.gelu(norm(first(image.mT.unflatten(2, (grid, grid)))))))
    return (masks @ pixels.flatten(2)).unflatten(2, (4 * grid, 4 * grid))


def _padded(count: int, least: int = 16) -> int:
    """The next power of two, as Triton's blocks have."""
    return max(least, 1 << (count - 1).bit_length())


@lru_cache(maxsize=32)
def _launch(device: torch.device) -> dict[str, dict[str, int]]:
    if device.type != "cuda":
        return _LARGE
    return _LARGE if torch.cuda.get_device_capability(device)[0] == 9 else _SMALL


@lru_cache(maxsize=32)
def _work(device: torch.device, channels: int) -> bool:
    """Tries the kernels on small images: they need a C compiler, Python's headers, shared memory, and must be right."""
    if find_spec("triton") is None or torch.cuda.get_device_capability(device) < (8, 0):  # before, there is no TF32
        return False
    try:
        generator = torch.Generator(device).manual_seed(0)
        image, positions, rows, offset, added = (
            torch.randn(*shape, device=device, generator=generator)
            for shape in ((2, 256, channels), (256, channels), (2, 56, channels), (2, 56, 1), (2, 56, channels))
        )
        norm = nn.LayerNorm(channels, device=device)
        upscaling = (
            nn.ConvTranspose2d(channels, channels // 4, 2, 2, device=device),
            ChannelLayerNorm(channels // 4).to(device),
            nn.ConvTranspose2d(channels // 4, channels // 8, 2, 2, device=device),
        )
        masks = rows[:, :3, : channels // 8].contiguous()
        rows *= 0.1
        fused = Fused(image, positions)
        found = (
            fused.gather(rows),
            fused.scatter(rows, offset, added, 8, norm, overwrite=False),
            draw(image, masks, *upscaling),
        )
        expected = (
            _plain_gather(rows, image, positions),
            _plain_scatter(image, positions, rows, offset, added, 8, norm),
            _plain_draw(image, masks, *upscaling),
        )
        right = all(torch.allclose(a, b, rtol=0.02, atol=0.02) for a, b in zip(found, expected, strict=True))
        reason = "its results are wrong"
    except Exception as error:  # of a missing or failing compiler, of a folder for its cache that cannot be written
        if is_out_of_memory(error) or loses_device(error, device):
            raise
        right, reason = False, (str(error).splitlines() or [type(error).__name__])[0]
    if not right:
        log.warning("the decoder's Triton kernels do not work here (%s): it runs without them, more slowly", reason)
    return right
