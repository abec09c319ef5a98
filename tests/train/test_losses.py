"""SAM's losses: against their definitions, pixel by pixel, and the choice of the mask that is trained."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from data_engine.train.losses import assign_targets, decoding_loss, pairwise_losses


def test_all_pairs_at_once_equal_the_definitions():
    torch.manual_seed(0)
    logits, targets = torch.randn(2, 4, 8, 8), torch.rand(2, 3, 8, 8) > 0.6
    losses = pairwise_losses(logits, targets)
    for p in range(2):
        for m in range(4):
            for k in range(3):
                x, t = logits[p, m], targets[p, k].float()
                probability = x.sigmoid()
                cross_entropy = F.binary_cross_entropy_with_logits(x, t, reduction="none")
                right = torch.where(t > 0, probability, 1 - probability)
                weight = torch.where(t > 0, 0.25, 0.75)
                focal = (weight * (1 - right) ** 2 * cross_entropy).mean()
                dice = 1 - (2 * (probability * t).sum() + 1) / (probability.sum() + t.sum() + 1)
                mask = x > 0
                iou = (mask & targets[p, k]).sum() / (mask | targets[p, k]).sum()
                torch.testing.assert_close(losses.focal[p, m, k], focal)
                torch.testing.assert_close(losses.dice[p, m, k], dice)
                torch.testing.assert_close(losses.iou[p, m, k], iou)


def test_one_target_trains_the_cheapest_mask_alone():
    cost = torch.tensor([[[3.0, 9, 9], [1, 9, 9], [2, 9, 9]]])
    chosen = assign_targets(cost, torch.tensor([[True, False, False]]))
    assert chosen[0].nonzero().tolist() == [[1, 0]]


def test_three_targets_go_to_three_masks_at_the_least_total_cost():
    cost = torch.tensor([[[1.0, 2, 9], [1, 9, 9], [9, 9, 5]]])  # greedy would give mask 0 to target 0
    chosen = assign_targets(cost, torch.tensor([[True, True, True]]))
    assert chosen[0].nonzero().tolist() == [[0, 1], [1, 0], [2, 2]]


def test_the_single_mask_output_takes_the_target_it_answers_best():
    cost = torch.tensor([[[3.0, 1, 2]]])
    assert assign_targets(cost, torch.tensor([[True, True, True]]))[0].nonzero().tolist() == [[0, 1]]
    assert assign_targets(cost, torch.tensor([[True, False, True]]))[0].nonzero().tolist() == [[0, 2]]


def test_a_perfect_answer_costs_nothing_and_its_iou_is_learnt():
    targets = torch.zeros(1, 3, 8, 8, dtype=torch.bool)
    targets[0, 0, 2:5, 2:5] = True
    valid = torch.tensor([[True, False, False]])
    logits = torch.where(targets[:, :1], 20.0, -20.0).expand(1, 4, 8, 8)
    weights = {"focal_weight": 20.0, "dice_weight": 1.0, "iou_weight": 1.0}
    right = decoding_loss(logits, torch.ones(1, 4), targets, valid, **weights)
    assert right.total < 1e-3
    assert right.best_iou == 1
    wrong = decoding_loss(logits, torch.zeros(1, 4), targets, valid, **weights)
    torch.testing.assert_close(wrong.iou_error, torch.tensor(1.0))
