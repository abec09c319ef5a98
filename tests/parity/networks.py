"""The same network as a segment-anything `Sam` and as our segmenter, with random weights or those of a checkpoint."""

from __future__ import annotations

from typing import Any

import torch
from parity.reference import modeling, reference_sam
from torch import Tensor, nn

from data_engine.sam.model import Sam, SamArchitecture
from data_engine.sam.segmenter import SamSegmenter

SMALL = SamArchitecture(
    embed_dim=64,
    depth=3,
    num_heads=2,
    mlp_dim=256,
    global_blocks=(1,),
    image_size=256,
    window_size=5,
    dim=64,
    decoder_mlp_dim=128,
    iou_hidden_dim=64,
)


@torch.no_grad()
def random_reference(architecture: SamArchitecture = SMALL, seed: int = 0) -> modeling.Sam:
    """Random weights, rescaled so that automatic mask generation has something to do.

    As drawn, such a network gives nearly the same answer to every click: low logits, one mask. So, from the answers to
    some clicks on noise, the heads of the decoder are centred and scaled: logits of standard deviation 40 with a sixth
    to a third of the frame inside a mask, predicted IoU around 0.85. The fields are random but differ by click.
    """
    torch.manual_seed(seed)
    model = reference_sam(architecture)
    decoder = model.mask_decoder
    for name, parameter in model.named_parameters():
        if "rel_pos" in name or "pos_embed" in name:
            nn.init.normal_(parameter, std=0.3)
    first, last = decoder.output_upscaling[0], decoder.output_upscaling[3]
    for layer in (first, last):  # smooth fields: all pixels that come of one cell alike
        layer.weight.copy_(2 * layer.weight.mean((2, 3), keepdim=True).expand_as(layer.weight))
    last.weight[:, 0], last.bias[0] = 0, 10  # channel 0 is constant (GELU(10) = 10): it sets a mask's general level

    size = architecture.image_size
    features = model.image_encoder(model.preprocess(torch.randint(0, 256, (3, size, size)).float())[None])
    clicks = (torch.rand(64, 1, 2) * size, torch.ones(64, 1, dtype=torch.int))
    sparse, dense = model.prompt_encoder(clicks, None, None)

    def answers() -> tuple[Tensor, Tensor, dict[nn.Module, Tensor]]:
        weights: dict[nn.Module, Tensor] = {}

        def keep(module: nn.Module, _: Any, output: Tensor) -> None:
            weights[module] = output

        hooks = [head.register_forward_hook(keep) for head in decoder.output_hypernetworks_mlps]
        logits, iou = decoder(
            image_embeddings=features,
            image_pe=model.prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=True,
        )
        for hook in hooks:
            hook.remove()
        return logits, iou, weights

    _, iou, weights = answers()
    for head in decoder.output_hypernetworks_mlps:
        head.layers[-1].bias -= weights[head].mean(0)
        head.layers[-1].weight[0], head.layers[-1].bias[0] = 0, 0
    logits, _, _ = answers()
    for head, field in zip(decoder.output_hypernetworks_mlps[1:], logits.unbind(1), strict=True):
        scale = 40 / field.std()
        head.layers[-1].weight *= scale
        head.layers[-1].bias *= scale
        head.layers[-1].bias[0] = -2.5  # times 10, the constant channel
    scores = decoder.iou_prediction_head.layers[-1]
    scores.weight *= 0.15 / iou.std()
    scores.bias.zero_()
    _, iou, _ = answers()
    scores.bias[1:] += 0.85 - iou.mean(0)
    return model


def segmenter_of(reference: modeling.Sam) -> SamSegmenter:
    """The same weights in ours."""
    state = reference.state_dict()
    model = Sam(SamArchitecture.of_state(state))
    model.load_state_dict(state)
    return SamSegmenter(model, torch.device("cpu"), "reference")
