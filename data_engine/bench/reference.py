"""segment-anything's own generator as a contender, with the same weights."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from functools import lru_cache, partial
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from data_engine.bench.clock import StageClock
from data_engine.bench.contender import Records
from data_engine.bench.photographs import Photograph
from data_engine.bench.torchvision_standin import torchvision_or_standin
from data_engine.errors import UsageError
from data_engine.images.decode import decode
from data_engine.images.settings import InputSettings
from data_engine.masks.settings import MaskSettings
from data_engine.sam.model import SamArchitecture, Uninitialised

_NOT_THERE = ("max_mask_area_fraction", "drop_small_masks", "suppression", "adaptive_points", "adaptive_step")
_POINTS_PER_BATCH = 64  # the reference's default


@lru_cache(maxsize=1)
def segment_anything() -> SimpleNamespace:
    """The modules of segment-anything, and which torchvision they use. Raises UsageError if it is not installed."""
    with torchvision_or_standin() as torchvision:
        try:
            generator = import_module("segment_anything.automatic_mask_generator")
            modeling = import_module("segment_anything.modeling")
        except ImportError as error:
            raise UsageError(
                f"segment-anything cannot be imported ({error}): pip install segment-anything "
                "(its torchvision is stood in for where there is none), or measure without it: --against none"
            ) from None
    return SimpleNamespace(generator=generator, modeling=modeling, torchvision=torchvision)


def reference_sam(a: SamArchitecture, state: Mapping[str, Tensor]) -> nn.Module:
    """segment-anything's `Sam` in any size. It shares the memory of the weights given, float32."""
    modeling = segment_anything().modeling
    with Uninitialised():
        encoder = modeling.ImageEncoderViT(
            img_size=a.image_size,
            patch_size=a.patch_size,
            embed_dim=a.embed_dim,
            depth=a.depth,
            num_heads=a.num_heads,
            mlp_ratio=a.mlp_dim / a.embed_dim,
            out_chans=a.dim,
            qkv_bias=True,
            norm_layer=partial(nn.LayerNorm, eps=1e-6),
            use_rel_pos=True,
            window_size=a.window_size,
            global_attn_indexes=a.global_blocks,
        )
        prompts = modeling.PromptEncoder(a.dim, (a.grid, a.grid), (a.image_size, a.image_size), a.mask_hidden_dim)
        decoder = modeling.MaskDecoder(
            num_multimask_outputs=a.num_masks - 1,
            transformer=modeling.TwoWayTransformer(
                depth=a.decoder_depth,
                embedding_dim=a.dim,
                mlp_dim=a.decoder_mlp_dim,
                num_heads=a.decoder_heads,
                attention_downsample_rate=a.attention_downsample,
            ),
            transformer_dim=a.dim,
            iou_head_depth=a.iou_depth,
            iou_head_hidden_dim=a.iou_hidden_dim,
        )
        sam: nn.Module = modeling.Sam(encoder, prompts, decoder)
    sam.load_state_dict(state, assign=True)
    device = next(iter(state.values())).device
    return sam.to(device).eval().requires_grad_(False)


def settings_for_reference(settings: MaskSettings) -> dict[str, Any]:
    """Raises UsageError for a setting that segment-anything does not have."""
    wanted, default = asdict(settings), asdict(MaskSettings())
    changed = [name for name in _NOT_THERE if wanted[name] != default[name]]
    if changed:
        raise UsageError(f"segment-anything has no {' and no '.join(changed)}: leave it out, or --against none")
    given = {name: value for name, value in wanted.items() if name not in _NOT_THERE}
    given["points_per_batch"] = settings.points_per_batch or _POINTS_PER_BATCH
    if settings.point_grids is not None:
        given["point_grids"] = [np.array(grid) for grid in settings.point_grids]
    return given


class Reference:
    """In float32, whatever precision ours has: it has no other."""

    name = "segment-anything"

    def __init__(self, sam: nn.Module, settings: MaskSettings, *, exact: bool) -> None:
        """exact: without TF32, for comparing; otherwise as torch sets it, that is with TF32 in convolutions."""
        self._generator = segment_anything().generator.SamAutomaticMaskGenerator(
            sam, **settings_for_reference(settings), output_mode="coco_rle"
        )
        self._exact = exact
        self.torchvision: str = segment_anything().torchvision  # its version, or "stand-in"

    def generate(self, image: np.ndarray) -> Records:
        with tf32(products=False, convolutions=not self._exact):
            records: Records = self._generator.generate(image)
            return records

    def records(self, generated: Any) -> Records:
        return generated

    def stages(self, photograph: Photograph) -> dict[str, float]:
        """Written is JSON, as segment-anything's own script does. What the mask decoder does to upscaled features
        counts as "prompt decode", and all filtering as "upsample + score"."""
        generator, module = self._generator, segment_anything().generator
        predictor = generator.predictor
        clock = StageClock(predictor.device)
        with ExitStack() as stack:
            for owner, name, stage in (
                (predictor, "set_image", "encode"),
                (predictor.transform, "apply_image", "resize"),
                (generator, "_process_batch", "upsample + score"),
                (predictor, "predict_torch", "prompt decode"),
                (predictor.model.mask_decoder.output_upscaling, "forward", "masks"),
                (predictor.model, "postprocess_masks", "upsample + score"),
                *((module, name, "RLE") for name in ("uncrop_masks", "mask_to_rle_pytorch")),
                *((module, name, "RLE") for name in ("coco_encode_rle", "area_from_rle")),
                (module, "batched_nms", "suppress"),
            ):
                stack.enter_context(clock.timing(owner, name, stage))
            stack.enter_context(clock.timing(generator, "postprocess_small_regions", "regions", whole=True))
            with clock.stage("decode"):
                pixels = decode(photograph.data, InputSettings())
            records = self.generate(pixels)
            with clock.stage("write"):
                json.dumps(records)
        return clock.stop()


@contextmanager
def tf32(*, products: bool, convolutions: bool) -> Iterator[None]:
    """What CUDA may round to TF32, inside."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = products, convolutions
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before
