"""A batch of scenes and all their prompts through a model at once: what a GPU is busy with."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from data_engine.sam.model import Sam
from data_engine.sam.prompt_encoder import BACKGROUND, FOREGROUND
from data_engine.train.data.device_prompts import PromptBatch
from data_engine.train.data.torch_scenes import SceneBatch
from data_engine.train.losses import pairwise_losses


@dataclass(frozen=True, slots=True)
class Answers:
    """Of P prompts: M masks each, and the K targets that they may be for."""

    logits: Tensor  # PxMx(4G)x(4G)
    iou: Tensor  # PxM
    targets: Tensor  # PxKx(4G)x(4G) bool
    valid: Tensor  # PxK


class BatchDecoder:
    """Answers of a model to a batch, clicks of all images before boxes of all images. On a GPU in bfloat16."""

    def __init__(self, model: Sam, batch: SceneBatch, prompts: PromptBatch) -> None:
        self.model = model
        self.prompts = prompts
        count, _, height, width = batch.images.shape
        frame = model.architecture.image_size
        pixels = batch.images.new_zeros(count, 3, frame, frame)
        pixels[..., :height, :width] = batch.images
        with self._autocast():
            embeddings = model.image_encoder(model.normalise(pixels, [(height, width)] * count))
        self.cells = embeddings.flatten(2).mT  # BxNxC
        self.positions = model.prompt_encoder.dense_positions()

    def first(self) -> Answers:
        """To every prompt as it is."""
        prompts, encoder = self.prompts, self.model.prompt_encoder
        points = prompts.clicks.flatten(0, 1)[:, None]
        labels = torch.full(points.shape[:2], FOREGROUND, device=points.device)
        tokens = [encoder(points=points, labels=labels)[0], encoder(boxes=prompts.boxes.flatten(0, 1))[0]]
        cells = [self.cells.repeat_interleave(n, 0) for n in (prompts.clicks.shape[1], prompts.boxes.shape[1])]
        image = torch.cat(cells) + encoder.no_mask_embed.weight[0]
        return self._decode(image, torch.cat(tokens), self._flat(prompts.targets), self._flat(prompts.valid))

    def corrected(self, answers: Answers, generator: torch.Generator) -> Answers:
        """Every click is settled on one of its targets, and a second one put where the best mask for it is wrong."""
        count = self.prompts.clicks.shape[:2].numel()
        rows = torch.arange(count, device=answers.logits.device)
        with torch.no_grad():
            usable = answers.valid[:count].float()
            usable[:, 0] += (usable.sum(1) == 0).float()
            kind = torch.multinomial(usable, 1, generator=generator)[:, 0]
            targets = answers.targets[rows, kind][:, None]
            best = pairwise_losses(answers.logits[:count], targets).iou[:, :, 0].argmax(1)
            masks = answers.logits[rows, best][:, None].detach()
            wrong = ((masks > 0) != targets).flatten(1).float() + 1e-6  # a perfect mask gets a click anywhere
            at = torch.multinomial(wrong, 1, generator=generator)
            side = masks.shape[-1]
            offset = torch.rand(count, 2, generator=generator, device=masks.device)
            second = (torch.cat([at % side, at // side], 1) + offset) * (
                self.model.architecture.image_size // side
            ) - 0.5
            inside = targets.flatten(1).gather(1, at)
            labels = torch.cat([torch.full_like(at, FOREGROUND), torch.where(inside, FOREGROUND, BACKGROUND)], 1)
        points = torch.stack([self.prompts.clicks.flatten(0, 1), second], 1)
        tokens, dense = self.model.prompt_encoder(points=points, labels=labels, masks=masks)
        image = self.cells.repeat_interleave(self.prompts.clicks.shape[1], 0) + dense
        return self._decode(image, tokens, targets, answers.valid[:count].any(1, keepdim=True))

    def _decode(self, image: Tensor, tokens: Tensor, targets: Tensor, valid: Tensor) -> Answers:
        decoder = self.model.mask_decoder
        with self._autocast():
            decoded = decoder.read(image, self.positions, tokens)
            logits = decoder.mask_logits(decoded.image, decoder.mask_weights(decoded))
        return Answers(logits.float(), decoded.iou.float(), targets, valid)

    def _flat(self, values: Tensor) -> Tensor:
        clicks = self.prompts.clicks.shape[1]
        return torch.cat([values[:, :clicks].flatten(0, 1), values[:, clicks:].flatten(0, 1)])

    def _autocast(self) -> torch.autocast:
        device = self.prompts.clicks.device.type
        return torch.autocast(device, torch.bfloat16, enabled=device == "cuda")
