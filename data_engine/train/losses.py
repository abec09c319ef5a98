"""SAM's mask losses, for every pair of a predicted mask and a possible target at once.

Focal loss, dice and IoU are sums over pixels that are linear in the target. With a target t in {0, 1}:
sum_i t_i f(x_i) + (1 - t_i) g(x_i) = (f - g) . t + sum g. So all pairs cost one small matrix product.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations

import torch
from torch import Tensor
from torch.nn import functional as F

FOCAL_ALPHA = 0.25
FOCAL_GAMMA = 2


@dataclass(slots=True)
class PairwiseLosses:
    """For P prompts, M predicted masks and K targets each: PxMxK."""

    focal: Tensor
    dice: Tensor
    iou: Tensor  # true IoU of the thresholded prediction; carries no gradient


def pairwise_losses(logits: Tensor, targets: Tensor) -> PairwiseLosses:
    """logits PxMxHxW, targets PxKxHxW bool."""
    x = logits.flatten(2).float()
    t = targets.flatten(2).to(x.dtype).mT  # PxNxK
    pixels = x.shape[-1]
    area = t.sum(1, keepdim=True)  # Px1xK
    p = x.sigmoid()
    as_foreground = -FOCAL_ALPHA * (1 - p) ** FOCAL_GAMMA * F.logsigmoid(x)
    as_background = -(1 - FOCAL_ALPHA) * p**FOCAL_GAMMA * F.logsigmoid(-x)
    focal = ((as_foreground - as_background) @ t + as_background.sum(-1, keepdim=True)) / pixels
    dice = 1 - (2 * (p @ t) + 1) / (p.sum(-1, keepdim=True) + area + 1)
    with torch.no_grad():
        predicted = (x > 0).to(x.dtype)
        both = predicted @ t
        iou = both / (predicted.sum(-1, keepdim=True) + area - both).clamp(min=1)
    return PairwiseLosses(focal, dice, iou)


def assign_targets(cost: Tensor, valid: Tensor) -> Tensor:
    """Which target each mask is trained towards: cost PxMxK, valid PxK -> PxMxK bool.

    Each valid target goes to a mask of its own such that the total cost is least. With one valid target this is
    SAM's minimum over the masks; with one mask it is the target that the mask answers best. Needs K <= 3.
    """
    _, masks, kinds = cost.shape
    cost = cost.detach()
    if masks == 1:
        best = cost[:, 0].masked_fill(~valid, torch.inf).argmin(1)
        return F.one_hot(best, kinds).bool()[:, None] & valid[:, None]
    ways = torch.tensor(list(permutations(range(masks), kinds)), device=cost.device)  # Wx K: target k -> mask
    per_target = cost.masked_fill(~valid[:, None], 0)
    totals = per_target[:, ways, torch.arange(kinds, device=cost.device)].sum(-1)  # PxW
    mask_of_target = ways[totals.argmin(1)]  # PxK
    chosen = F.one_hot(mask_of_target, masks).mT.bool()  # PxMxK
    return chosen & valid[:, None]


@dataclass(slots=True)
class DecodingLoss:
    total: Tensor
    focal: Tensor
    dice: Tensor
    iou_error: Tensor
    best_iou: Tensor  # mean over prompts and targets of the IoU of the mask that answers it


def decoding_loss(
    logits: Tensor,
    predicted_iou: Tensor,
    targets: Tensor,
    valid: Tensor,
    *,
    focal_weight: float,
    dice_weight: float,
    iou_weight: float,
) -> DecodingLoss:
    """The loss of P decoded prompts; mask 0 is the single-mask output, the others share out the targets.

    logits PxMxHxW, predicted_iou PxM, targets PxKxHxW bool, valid PxK bool. Every mask's predicted IoU is trained
    towards its IoU with the valid target it fits best, whether or not the mask itself was trained.
    """
    pairs = pairwise_losses(logits, targets)
    mask_loss = focal_weight * pairs.focal + dice_weight * pairs.dice
    chosen = torch.cat([assign_targets(mask_loss[:, :1], valid), assign_targets(mask_loss[:, 1:], valid)], 1)
    # Every prompt counts the same, however many targets it has; the single-mask output counts as one more target.
    weight = chosen / chosen.sum((1, 2), keepdim=True) / len(logits)
    true_iou = pairs.iou.masked_fill(~valid[:, None], 0).amax(2)
    iou_error = F.mse_loss(predicted_iou.float(), true_iou)
    focal, dice = (weight * pairs.focal).sum(), (weight * pairs.dice).sum()
    multi = chosen[:, 1:]
    return DecodingLoss(
        total=focal_weight * focal + dice_weight * dice + iou_weight * iou_error,
        focal=focal.detach(),
        dice=dice.detach(),
        iou_error=iou_error.detach(),
        best_iou=pairs.iou[:, 1:][multi].mean(),
    )
