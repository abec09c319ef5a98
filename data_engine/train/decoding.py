"""From an image embedding and prompts to a loss: the first answer, and a second after a correcting click."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from data_engine.sam.mask_decoder import DecodedTokens
from data_engine.sam.model import Sam
from data_engine.sam.prompt_encoder import BACKGROUND, FOREGROUND
from data_engine.train.losses import pairwise_losses
from data_engine.train.samples import Sample


@dataclass(slots=True)
class Answer:
    logits: Tensor  # PxMx(4G)x(4G)
    predicted_iou: Tensor  # PxM


@dataclass(slots=True)
class Correction:
    """Clicks with a second point each, and the one mask that each of them now means."""

    points: Tensor  # Cx2x2
    labels: Tensor  # Cx2
    masks: Tensor  # Cx1x(4G)x(4G) logits of the first answer
    targets: Tensor  # Cx1x(4G)x(4G) bool


def answer_first(model: Sam, embedding: Tensor, positions: Tensor, sample: Sample) -> Answer:
    """embedding NxC, positions NxC -> answers to the sample's clicks, then its boxes."""
    tokens = []
    if len(sample.clicks):
        labels = torch.full((len(sample.clicks), 1), FOREGROUND, device=embedding.device)
        tokens.append(model.prompt_encoder(points=sample.clicks[:, None], labels=labels)[0])
    if len(sample.boxes):
        tokens.append(model.prompt_encoder(boxes=sample.boxes)[0])
    no_mask = model.prompt_encoder.no_mask_embed.weight[0]
    return _decode(model, embedding + no_mask.to(embedding.dtype), positions, torch.cat(tokens))


def answer_correction(model: Sam, embedding: Tensor, positions: Tensor, correction: Correction) -> Answer:
    tokens, dense = model.prompt_encoder(points=correction.points, labels=correction.labels, masks=correction.masks)
    return _decode(model, embedding + dense.to(embedding.dtype), positions, tokens)


def _decode(model: Sam, image: Tensor, positions: Tensor, tokens: Tensor) -> Answer:
    decoded: DecodedTokens = model.mask_decoder.read(image, positions, tokens.to(image.dtype))
    return Answer(model.mask_decoder.mask_logits(decoded.image, decoded.weights).float(), decoded.iou.float())


@torch.no_grad()
def correct(answer: Answer, sample: Sample, stride: int, generator: torch.Generator) -> Correction:
    """Settles every click on one of its targets at random and clicks where the best mask for it is wrong.

    stride: input pixels a mask pixel.
    """
    count = len(sample.clicks)
    logits, valid = answer.logits[:count], sample.valid[:count]
    kind = torch.multinomial(valid.float().cpu(), 1, generator=generator)[:, 0].to(valid.device)
    rows = torch.arange(count, device=valid.device)
    targets = sample.targets[rows, kind][:, None]
    best = pairwise_losses(logits, targets).iou[:, :, 0].argmax(1)
    masks = logits[rows, best][:, None]
    wrong = ((masks > 0) != targets).flatten(1).float()
    wrong = wrong + 1e-6  # a perfect mask gets a click anywhere
    at = torch.multinomial(wrong.cpu(), 1, generator=generator).to(valid.device)
    side = masks.shape[-1]
    offset = torch.rand(count, 2, generator=generator).to(valid.device)
    second = (torch.cat([at % side, at // side], 1) + offset) * stride - 0.5
    inside = targets.flatten(1).gather(1, at)
    labels = torch.cat([torch.full_like(at, FOREGROUND), torch.where(inside, FOREGROUND, BACKGROUND)], 1)
    return Correction(torch.stack([sample.clicks, second], 1), labels, masks, targets)
