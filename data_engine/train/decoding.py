"""From an image embedding and prompts to a loss: the first answer, and a second after a correcting click."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from data_engine.sam.mask_decoder import ChannelLayerNorm, MaskDecoder
from data_engine.sam.model import Sam
from data_engine.sam.prompt_encoder import BACKGROUND, FOREGROUND
from data_engine.train.losses import pairwise_losses
from data_engine.train.samples import Sample

Phase = tuple[int, int]


@dataclass(slots=True)
class Answer:
    logits: Tensor  # PxMx(2G)x(2G): every second pixel of every second row, from `phase` on
    predicted_iou: Tensor  # PxM
    image: Tensor  # PxNxC the embedding as each prompt has changed it
    weights: Tensor  # PxMxD of the masks


@dataclass(slots=True)
class Correction:
    """Clicks with a second point each, and the one mask that each of them now means."""

    points: Tensor  # Cx2x2
    labels: Tensor  # Cx2
    masks: Tensor  # Cx1x(4G)x(4G) logits of the first answer
    targets: Tensor  # Cx1x(4G)x(4G) bool


def at_phase(masks: Tensor, phase: Phase) -> Tensor:
    """PxKx(4G)x(4G) -> PxKx(2G)x(2G): the pixels that a loss at this phase looks at."""
    return masks[..., phase[0] :: 2, phase[1] :: 2]


def answer_first(model: Sam, embedding: Tensor, positions: Tensor, sample: Sample, phase: Phase) -> Answer:
    """embedding NxC, positions NxC -> answers to the sample's clicks, then its boxes."""
    tokens = []
    if len(sample.clicks):
        labels = torch.full((len(sample.clicks), 1), FOREGROUND, device=embedding.device)
        tokens.append(model.prompt_encoder(points=sample.clicks[:, None], labels=labels)[0])
    if len(sample.boxes):
        tokens.append(model.prompt_encoder(boxes=sample.boxes)[0])
    no_mask = model.prompt_encoder.no_mask_embed.weight[0]
    return _decode(model, embedding + no_mask.to(embedding.dtype), positions, torch.cat(tokens), phase)


def answer_correction(model: Sam, embedding: Tensor, positions: Tensor, correction: Correction, phase: Phase) -> Answer:
    tokens, dense = model.prompt_encoder(points=correction.points, labels=correction.labels, masks=correction.masks)
    return _decode(model, embedding + dense.to(embedding.dtype), positions, tokens, phase)


def _decode(model: Sam, image: Tensor, positions: Tensor, tokens: Tensor, phase: Phase) -> Answer:
    decoded = model.mask_decoder.read(image, positions, tokens.to(image.dtype))
    weights = model.mask_decoder.mask_weights(decoded)
    logits = logits_at_phase(model.mask_decoder, decoded.image, weights, phase)
    return Answer(logits.float(), decoded.iou.float(), decoded.image, weights)


def logits_at_phase(decoder: MaskDecoder, image: Tensor, weights: Tensor, phase: Phase) -> Tensor:
    """A quarter of `MaskDecoder.mask_logits`, for a quarter of its cost: PxMx(2G)x(2G).

    The last upscaling turns a cell into 2x2 pixels that do not see each other, so one of them can be had alone. Over
    the steps the phases change, and the loss sees every pixel.
    """
    first, norm, _, second, _ = decoder.output_upscaling
    assert isinstance(first, nn.ConvTranspose2d)
    assert isinstance(norm, ChannelLayerNorm)
    assert isinstance(second, nn.ConvTranspose2d)
    assert first.bias is not None
    x = image.reshape(-1, image.shape[2]) @ first.weight.permute(0, 2, 3, 1).flatten(1)
    x = x.view(-1, first.out_channels) + first.bias
    x = F.gelu(F.layer_norm(x, (first.out_channels,), norm.weight, norm.bias, norm.eps))
    x = F.gelu(F.linear(x, second.weight[:, :, phase[0], phase[1]].T, second.bias))
    masks = weights @ x.view(image.shape[0], -1, second.out_channels).mT
    side = decoder.grid
    masks = masks.view(*masks.shape[:2], side, side, 2, 2)
    return masks.transpose(3, 4).reshape(*masks.shape[:2], 2 * side, 2 * side)


@torch.no_grad()
def correct(
    model: Sam, answer: Answer, sample: Sample, phase: Phase, stride: int, generator: torch.Generator
) -> Correction:
    """Settles every click on one of its targets at random and clicks where the best mask for it is wrong.

    stride: input pixels a mask pixel.
    """
    count = len(sample.clicks)
    logits, valid = answer.logits[:count], sample.valid[:count]
    kind = torch.multinomial(valid.float().cpu(), 1, generator=generator)[:, 0].to(valid.device)
    rows = torch.arange(count, device=valid.device)
    targets = sample.targets[rows, kind][:, None]
    best = pairwise_losses(logits, at_phase(targets, phase)).iou[:, :, 0].argmax(1)
    chosen = answer.weights[rows, best][:, None]
    masks = model.mask_decoder.mask_logits(answer.image[:count], chosen).float()
    wrong = ((masks > 0) != targets).flatten(1).float()
    wrong = wrong + 1e-6  # a perfect mask gets a click anywhere
    at = torch.multinomial(wrong.cpu(), 1, generator=generator).to(valid.device)
    side = masks.shape[-1]
    offset = torch.rand(count, 2, generator=generator).to(valid.device)
    second = (torch.cat([at % side, at // side], 1) + offset) * stride - 0.5
    inside = targets.flatten(1).gather(1, at)
    labels = torch.cat([torch.full_like(at, FOREGROUND), torch.where(inside, FOREGROUND, BACKGROUND)], 1)
    return Correction(torch.stack([sample.clicks, second], 1), labels, masks, targets)
