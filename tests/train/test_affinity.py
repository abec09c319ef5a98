"""Which pixels belong with this one: the second task of the training, on the embedding alone."""

from __future__ import annotations

import math

import torch
from train.tiny_training import ARCHITECTURE

from data_engine.train.affinity import AffinityHead, affinity_loss
from data_engine.train.initialise import new_model


def halves() -> torch.Tensor:
    """Levels 3x(4G)x(4G): the image's left and right half; on the finest level nothing is known."""
    side = 4 * ARCHITECTURE.grid
    levels = torch.ones(3, side, side, dtype=torch.int32)
    levels[:, :, side // 2 :] = 2
    levels[2] = 0
    return levels


def test_learning_it_makes_the_embedding_tell_regions_apart() -> None:
    torch.manual_seed(0)
    model, head = new_model(ARCHITECTURE), AffinityHead(ARCHITECTURE)
    embedding = torch.randn(ARCHITECTURE.grid**2, ARCHITECTURE.dim, requires_grad=True)
    optimizer = torch.optim.Adam([embedding, *head.parameters(), *model.mask_decoder.parameters()], lr=0.02)
    generator = torch.Generator().manual_seed(0)
    losses = []
    for step in range(60):
        loss = affinity_loss(
            head,
            model.mask_decoder,
            embedding,
            halves(),
            (step % 2, step // 2 % 2),
            pixels=16,
            focal_weight=20.0,
            dice_weight=1.0,
            generator=generator,
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert all(map(math.isfinite, losses))
    assert losses[-1] < 0.3 * losses[0]
