"""One image, several rounds: prompts, answers, losses, and what the simulated person does next.

As SAM was trained: a single point is ambiguous and answered with three masks, of which the best is trained; every other
prompt is answered with the one mask for unambiguous prompts. The logits of an answer go into the next prompt.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from data_engine.sam.model import Sam
from data_engine.train.losses import DecodingLoss, pairwise_losses
from data_engine.train.supervised.settings import LossSettings, PromptSettings
from data_engine.train.supervised.simulated_prompts import Prompts, correcting_points, first_prompts


@dataclass(slots=True)
class Answer:
    logits: Tensor  # PxMx(4G)x(4G); M = 3, or 1 where no mask is ambiguous
    predicted_iou: Tensor  # PxM
    trained: Tensor  # PxM bool: the masks that the prompt asks for


class Interaction:
    """Rounds of prompts on one image. Each gives its loss as soon as it is decoded, so that its activations can go."""

    def __init__(
        self,
        model: Sam,
        embedding: Tensor,
        targets: Tensor,
        prompts: PromptSettings,
        loss: LossSettings,
        autocast: torch.autocast,
        seed: int,
    ) -> None:
        """embedding NxC, targets PxRxR bool."""
        self._model = model
        self._embedding = embedding
        self._targets = targets
        self._settings = prompts
        self._loss = loss
        self._autocast = autocast
        self._generator = torch.Generator().manual_seed(seed)
        self._positions = model.prompt_encoder.dense_positions()

    @property
    def rounds(self) -> int:
        return 1 + self._settings.corrections + self._settings.mask_only_rounds

    def losses(self) -> Iterator[DecodingLoss]:
        """The mean loss of the P prompts, round after round. A round is decoded when it is asked for."""
        settings, frame = self._settings, self._model.architecture.image_size
        prompts = first_prompts(self._targets, frame, settings, self._generator)
        plan = _with_point(settings, self._generator)
        answer = self._answer(prompts, None, first=True)
        logits = self._at_loss_size(answer.logits)
        yield self._loss_of(answer, logits)
        for with_point in plan:
            low, seen = _most_promising(answer, logits)
            if with_point:
                prompts = prompts.with_points(*correcting_points(seen > 0, self._targets, frame, self._generator))
            answer = self._answer(prompts, low, first=False)
            logits = self._at_loss_size(answer.logits)
            yield self._loss_of(answer, logits)

    def _answer(self, prompts: Prompts, masks: Tensor | None, *, first: bool) -> Answer:
        model = self._model
        count = len(prompts.boxes)
        tokens, dense = _embed(model, prompts, masks)
        image = self._embedding + dense
        with self._autocast:
            decoded = model.mask_decoder.read(image, self._positions, tokens)
            three = first and count < len(tokens)
            outputs = slice(None) if three and count else slice(1, None) if three else slice(0, 1)
            weights = model.mask_decoder.mask_weights(decoded, outputs)
            logits = model.mask_decoder.mask_logits(decoded.image, weights)
        trained = torch.ones(logits.shape[:2], dtype=torch.bool, device=logits.device)
        if three and count:  # boxes ask for the single mask, points for the three others
            trained[:count, 1:] = False
            trained[count:, 0] = False
        return Answer(logits.float(), decoded.iou[:, outputs].float(), trained)

    def _at_loss_size(self, logits: Tensor) -> Tensor:
        side = self._targets.shape[-1]
        if logits.shape[-1] == side:
            return logits
        return F.interpolate(logits, (side, side), mode="bilinear", align_corners=False)

    def _loss_of(self, answer: Answer, logits: Tensor) -> DecodingLoss:
        return asked_loss(logits, answer.predicted_iou, answer.trained, self._targets, self._loss)


def asked_loss(
    logits: Tensor, predicted_iou: Tensor, asked: Tensor, targets: Tensor, settings: LossSettings
) -> DecodingLoss:
    """The loss of P prompts: of the masks that were asked for, the one with the least mask loss is trained.

    logits PxMxRxR, predicted_iou and asked PxM, targets PxRxR. The predicted IoU of every mask asked for is trained.
    """
    pairs = pairwise_losses(logits, targets[:, None])
    focal, dice, iou = (values[:, :, 0] for values in (pairs.focal, pairs.dice, pairs.iou))
    cost = settings.focal * focal + settings.dice * dice
    best = cost.detach().masked_fill(~asked, torch.inf).argmin(1, keepdim=True)
    focal, dice, iou_of_best = (values.gather(1, best).mean() for values in (focal, dice, iou))
    error = ((predicted_iou - iou) ** 2 * asked).sum(1) / asked.sum(1)
    iou_error = error.mean()
    return DecodingLoss(
        total=settings.focal * focal + settings.dice * dice + settings.iou * iou_error,
        focal=focal.detach(),
        dice=dice.detach(),
        iou_error=iou_error.detach(),
        best_iou=iou_of_best,
    )


def _with_point(settings: PromptSettings, generator: torch.Generator) -> list[bool]:
    """Which of the later rounds have a new point: the last has none, others without one are anywhere among them."""
    plan = [True] * settings.corrections
    for _ in range(settings.mask_only_rounds - 1):
        plan.insert(int(torch.randint(len(plan) + 1, (1,), generator=generator)), False)
    return plan + [False] * (settings.mask_only_rounds > 0)


@torch.no_grad()
def _most_promising(answer: Answer, logits: Tensor) -> tuple[Tensor, Tensor]:
    """Of each prompt's masks, the one with the highest predicted IoU: Px1x(4G)x(4G), and PxRxR at the loss's size."""
    best = answer.predicted_iou.masked_fill(~answer.trained, -torch.inf).argmax(1)
    rows = torch.arange(len(best), device=best.device)
    return answer.logits[rows, best][:, None], logits[rows, best]


def _embed(model: Sam, prompts: Prompts, masks: Tensor | None) -> tuple[Tensor, Tensor]:
    """Tokens PxTxC and dense embeddings PxNxC or C, in float32: bfloat16 coordinates would shift points by a pixel."""
    count = len(prompts.boxes)
    points, labels = prompts.points, prompts.labels
    parts = []
    if count:
        later = points.shape[1] > 1
        parts.append(
            model.prompt_encoder(
                points=points[:count, 1:] if later else None,
                labels=labels[:count, 1:] if later else None,
                boxes=prompts.boxes,
                masks=None if masks is None else masks[:count],
            )
        )
    if count < len(points):
        parts.append(
            model.prompt_encoder(
                points=points[count:], labels=labels[count:], masks=None if masks is None else masks[count:]
            )
        )
    tokens = torch.cat([tokens for tokens, _ in parts])
    return tokens, parts[0][1] if masks is None else torch.cat([dense for _, dense in parts])
