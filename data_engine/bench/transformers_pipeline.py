"""transformers' mask-generation pipeline as a contender, with the same weights, where it works.

It has no crops that work (huggingface/transformers#35530), no cleaning of small regions, and needs torchvision.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from data_engine.bench.contender import Records
from data_engine.bench.photographs import Photograph
from data_engine.bench.reference import tf32
from data_engine.errors import UsageError
from data_engine.masks import rle
from data_engine.masks.settings import MaskSettings
from data_engine.sam.checkpoint_layouts import to_huggingface
from data_engine.sam.model import SamArchitecture

_POINTS_PER_BATCH = 64  # its default


def refuse_unless_possible(settings: MaskSettings) -> None:
    """Raises UsageError saying why the pipeline cannot do what the settings ask for, or is not there."""
    reasons = [
        (settings.crop_n_layers > 0, "its crops fail (huggingface/transformers#35530)"),
        (settings.min_mask_region_area > 0, "it does not clean small regions"),
        (settings.points_per_side is None, "it has no explicit point grids"),
        (settings.pred_iou_thresh <= 0, "it has no filter that is off"),
        (settings.max_mask_area_fraction < 1, "it has no limit of a mask's area"),
        (settings.suppression == "mask", "it suppresses by boxes only"),
        (settings.adaptive_points, "it prompts every point"),
        (find_spec("transformers") is None, "transformers is not installed: pip install transformers"),
        (find_spec("torchvision") is None, "it needs torchvision, which is not installed"),
    ]
    for applies, reason in reasons:
        if applies:
            raise UsageError(reason)


class TransformersPipeline:
    """In float32, as `pipeline("mask-generation")` makes it."""

    name = "transformers"

    def __init__(self, a: SamArchitecture, state: Mapping[str, Tensor], settings: MaskSettings, *, exact: bool) -> None:
        refuse_unless_possible(settings)
        from transformers import MaskGenerationPipeline, SamImageProcessor

        size = {"longest_edge": a.image_size}
        frame = {"height": a.image_size, "width": a.image_size}
        device = next(iter(state.values())).device
        self._exact = exact
        self._pipeline = MaskGenerationPipeline(
            model=_sam_model(a, state), image_processor=SamImageProcessor(size=size, pad_size=frame), device=device
        )
        self._settings = {
            "points_per_batch": settings.points_per_batch or _POINTS_PER_BATCH,
            "points_per_crop": settings.points_per_side,
            "pred_iou_thresh": settings.pred_iou_thresh,
            "stability_score_thresh": settings.stability_score_thresh,
            "stability_score_offset": settings.stability_score_offset,
            "crops_nms_thresh": settings.box_nms_thresh,
            "output_rle_mask": True,
        }

    def generate(self, image: np.ndarray) -> Any:
        with tf32(products=False, convolutions=not self._exact):
            return self._pipeline(Image.fromarray(image), **self._settings)

    def records(self, generated: Any) -> Records:
        return [
            {"segmentation": _compressed(runs), "predicted_iou": float(score)}
            for runs, score in zip(generated["rle_mask"], generated["scores"], strict=True)
        ]

    def stages(self, photograph: Photograph) -> dict[str, float]:  # noqa: ARG002
        return {}


def _sam_model(a: SamArchitecture, state: Mapping[str, Tensor]) -> Any:
    """transformers' `SamModel`, sharing the memory of the weights."""
    from transformers import SamConfig, SamModel

    size = {"image_size": a.image_size, "patch_size": a.patch_size}
    config = SamConfig(
        vision_config={
            **size,
            "hidden_size": a.embed_dim,
            "output_channels": a.dim,
            "num_hidden_layers": a.depth,
            "num_attention_heads": a.num_heads,
            "global_attn_indexes": list(a.global_blocks),
            "window_size": a.window_size,
            "num_pos_feats": a.dim // 2,
            "mlp_dim": a.mlp_dim,
        },
        prompt_encoder_config={**size, "hidden_size": a.dim, "mask_input_channels": a.mask_hidden_dim},
        mask_decoder_config={
            "hidden_size": a.dim,
            "num_hidden_layers": a.decoder_depth,
            "num_attention_heads": a.decoder_heads,
            "attention_downsample_rate": a.attention_downsample,
            "mlp_dim": a.decoder_mlp_dim,
            "num_multimask_outputs": a.num_masks - 1,
            "iou_head_depth": a.iou_depth,
            "iou_head_hidden_dim": a.iou_hidden_dim,
            "layer_norm_eps": 1e-5,  # segment-anything's; transformers' own default is another
        },
    )
    with torch.device("meta"):
        model = SamModel(config)
    model.load_state_dict(to_huggingface(state), assign=True)
    return model.eval().requires_grad_(False)


def _compressed(runs: Mapping[str, Any]) -> dict[str, Any]:
    height, width = (int(side) for side in runs["size"])
    mask = rle.RLEMask.from_counts(np.array(runs["counts"], np.uint32), (height, width))
    return {"size": [height, width], "counts": rle.counts_string(mask)}
