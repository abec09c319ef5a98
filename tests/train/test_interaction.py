"""Rounds of prompts: which masks are trained on what, how many rounds there are, and that they can be learnt."""

from __future__ import annotations

import pytest
import torch
from train.tiny_training import ARCHITECTURE

from data_engine.train.initialise import new_model
from data_engine.train.losses import pairwise_losses
from data_engine.train.supervised.interaction import Interaction, asked_loss
from data_engine.train.supervised.settings import LossSettings, PromptSettings

SIDE = 4 * ARCHITECTURE.grid


def interaction(model, embedding, targets, loss=None, seed=0, **prompts):
    plain = torch.autocast("cpu", enabled=False)
    return Interaction(model, embedding, targets, PromptSettings(**prompts), loss or LossSettings(), plain, seed)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return new_model(ARCHITECTURE)


def squares(side: int = SIDE) -> torch.Tensor:
    targets = torch.zeros(3, side, side, dtype=torch.bool)
    targets[0, : side // 2, : side // 2] = targets[1, side // 2 :, side // 2 :] = True
    targets[2, side // 4 : side // 2] = True
    return targets


def trained_outputs(model, **prompts) -> set[int]:
    """Which of the four mask tokens get a gradient."""
    embedding = torch.randn(ARCHITECTURE.grid**2, ARCHITECTURE.dim)
    for seed in range(4):  # which of three masks is best is a matter of chance
        for loss in interaction(model, embedding, squares(), LossSettings(iou=0), seed, **prompts).losses():
            loss.total.backward()
    heads = model.mask_decoder.output_hypernetworks_mlps
    return {index for index, head in enumerate(heads) if any(p.grad is not None for p in head.parameters())}


def test_a_single_point_trains_the_three_masks_and_a_box_the_single_one(model):
    only_first = {"corrections": 0, "mask_only_rounds": 0}
    assert trained_outputs(model, box_share=0, **only_first) == {1, 2, 3}
    model.zero_grad(set_to_none=True)
    assert trained_outputs(model, box_share=1, **only_first) == {0}


def test_later_rounds_train_the_single_mask(model):
    assert trained_outputs(model, box_share=1, corrections=2, mask_only_rounds=1) == {0}


def test_there_are_as_many_rounds_as_in_sam(model):
    embedding = torch.randn(ARCHITECTURE.grid**2, ARCHITECTURE.dim)
    found = interaction(model, embedding, squares())
    assert found.rounds == 11
    assert len(list(found.losses())) == 11


def test_of_the_masks_asked_for_the_best_is_trained():
    torch.manual_seed(0)
    targets = squares(16)[:1]
    logits = torch.randn(1, 4, 16, 16)
    logits[0, 0] = 10 * (2 * targets[0].float() - 1)  # perfect, but not asked for
    logits[0, 2] = 2 * (2 * targets[0].float() - 1)  # the best of the others
    logits.requires_grad_()
    asked = torch.tensor([[False, True, True, True]])
    predicted = torch.tensor([[0.0, 0.5, 0.5, 0.5]])
    settings = LossSettings()
    loss = asked_loss(logits, predicted, asked, targets, settings)
    loss.total.backward()
    assert [bool(logits.grad[0, index].any()) for index in range(4)] == [False, False, True, False]
    pairs = pairwise_losses(logits.detach(), targets[:, None])
    error = ((0.5 - pairs.iou[0, 1:, 0]) ** 2).mean()
    expected = 20 * pairs.focal[0, 2, 0] + pairs.dice[0, 2, 0] + error
    torch.testing.assert_close(loss.total.detach(), expected)
    assert loss.best_iou == 1


def test_it_can_be_learnt_in_every_round(model):
    targets = squares(2 * SIDE)[:1]
    embedding = torch.randn(ARCHITECTURE.grid**2, ARCHITECTURE.dim, requires_grad=True)
    optimizer = torch.optim.Adam([embedding, *model.parameters()], 8e-3)
    loss, last = LossSettings(focal=0), []  # at first, focal loss only teaches that most pixels are background
    for step in range(45):
        asked = interaction(model, embedding, targets, loss, seed=step, corrections=1, mask_only_rounds=1)
        rounds = list(asked.losses())
        optimizer.zero_grad()
        sum(found.total for found in rounds).backward()
        optimizer.step()
        last = [float(found.best_iou) for found in rounds]
    assert min(last) > 0.5
