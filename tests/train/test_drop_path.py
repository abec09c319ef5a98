"""Stochastic depth: whole branches are left out for some images, in training only."""

from __future__ import annotations

import torch
from train.tiny_training import ARCHITECTURE

from data_engine.train.initialise import new_model
from data_engine.train.supervised.encoder import add_drop_path


@torch.no_grad()
def test_branches_are_left_out_in_training_only():
    torch.manual_seed(0)
    encoder = new_model(ARCHITECTURE).image_encoder
    first, last = encoder.blocks
    x = torch.randn(400, ARCHITECTURE.grid, ARCHITECTURE.grid, ARCHITECTURE.embed_dim)
    plain = last(x)
    add_drop_path(encoder, 0.5)
    torch.testing.assert_close(last.eval()(x), plain)
    untouched = (last.train()(x) == x).flatten(1).all(1).float().mean()
    assert 0.18 < untouched < 0.32  # both of two branches left out: a quarter
    assert not (first.train()(x) == x).flatten(1).all(1).any()  # the share grows from 0 at the first block


@torch.no_grad()
def test_what_is_kept_makes_up_for_what_is_not():
    torch.manual_seed(0)
    encoder = new_model(ARCHITECTURE).image_encoder
    attention = encoder.blocks[1].attn.train()
    x = torch.randn(1, ARCHITECTURE.grid, ARCHITECTURE.grid, ARCHITECTURE.embed_dim).expand(800, -1, -1, -1)
    expected = attention(x[:1], encoder.blocks[1].window_size)[0]
    add_drop_path(encoder, 0.5)
    mean = attention(x, encoder.blocks[1].window_size).mean(0)
    assert (mean - expected).norm() < 0.15 * expected.norm()
