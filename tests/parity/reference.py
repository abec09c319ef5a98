"""segment-anything itself, and how its records are compared with ours."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from parity import torchvision_standin
from pycocotools import mask as coco
from torch import nn

from data_engine.sam.model import SamArchitecture

with torchvision_standin.installed():
    from segment_anything import SamAutomaticMaskGenerator, SamPredictor, modeling, sam_model_registry
    from segment_anything.utils import amg
    from segment_anything.utils.transforms import ResizeLongestSide

__all__ = [
    "ResizeLongestSide",
    "SamAutomaticMaskGenerator",
    "SamPredictor",
    "amg",
    "assert_same_records",
    "modeling",
    "reference_sam",
    "sam_model_registry",
]

Records = list[dict[str, Any]]
_UNDECIDED_PIXELS = 3


def reference_sam(a: SamArchitecture) -> modeling.Sam:
    """segment-anything's own classes put together in any size, weights as torch draws them."""
    return modeling.Sam(
        modeling.ImageEncoderViT(
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
        ),
        modeling.PromptEncoder(a.dim, (a.grid, a.grid), (a.image_size, a.image_size), a.mask_hidden_dim),
        modeling.MaskDecoder(
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
        ),
    ).eval()


def assert_same_records(
    ours: Records, theirs: Records, *, score_tolerance: float = 0.0, undecided_share: float = 0.001
) -> tuple[int, int]:
    """Same masks in the same order: boxes, points and crops equal, scores within the tolerance, runs equal. Excepted is
    a share of masks of which up to 3 pixels lie on a threshold to the last bit, so that the rounding of sums decides
    them; a stability score is a ratio of counts of such pixels. Returns (masks, masks with equal runs)."""
    assert len(ours) == len(theirs)
    undecided = equal = 0
    for mine, yours in zip(ours, theirs, strict=True):
        assert mine.keys() == yours.keys()
        assert mine["point_coords"] == yours["point_coords"]
        assert mine["crop_box"] == yours["crop_box"]
        assert abs(mine["predicted_iou"] - yours["predicted_iou"]) <= score_tolerance
        same_runs = mine["segmentation"] == yours["segmentation"]
        stability = abs(mine["stability_score"] - yours["stability_score"])
        equal += same_runs
        if same_runs:
            assert mine["bbox"] == yours["bbox"]
            assert mine["area"] == yours["area"]
        if not same_runs or stability > score_tolerance:
            undecided += 1
            assert stability <= _UNDECIDED_PIXELS / max(1, mine["area"])
            assert (coco.decode(mine["segmentation"]) != coco.decode(yours["segmentation"])).sum() <= _UNDECIDED_PIXELS
            assert np.abs(np.subtract(mine["bbox"], yours["bbox"])).max() <= _UNDECIDED_PIXELS
    assert undecided <= len(ours) * undecided_share
    return len(ours), equal
