"""Adapters: they train alone in the encoder, and the plain weights that are exported compute the same."""

from __future__ import annotations

import pytest
import torch
from train.blobs import settings_for

from data_engine.train.supervised.lora import is_lora
from data_engine.train.supervised.optimizer import trained_parameters
from data_engine.train.supervised.starting_model import starting_model
from data_engine.train.supervised.validation import plain_model

pytest.importorskip("peft")


@pytest.fixture
def model():
    return starting_model(settings_for(model={"lora": {"rank": 4}})).model


def test_only_adapters_are_trained_in_the_encoder(model):
    trained = {name for name, _ in trained_parameters(model)}
    in_encoder = {name for name in trained if name.startswith("image_encoder.")}
    assert in_encoder
    assert all(is_lora(name) for name in in_encoder)
    assert any(name.startswith("mask_decoder.") for name in trained)


@torch.no_grad()
def test_they_start_as_no_change(model):
    plain = starting_model(settings_for()).model  # the same seed
    image = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(model.image_encoder(image), plain.image_encoder(image))


@torch.no_grad()
def test_merged_weights_compute_the_same(model):
    for name, parameter in trained_parameters(model):
        if is_lora(name):
            parameter.normal_(0, 0.2)
    image = torch.randn(2, 3, 64, 64)
    adapted, merged = (m.eval().image_encoder(image) for m in (model, plain_model(model)))
    torch.testing.assert_close(adapted, merged, rtol=1e-4, atol=1e-5)
    untouched = starting_model(settings_for()).model.image_encoder(image)
    assert (untouched - merged).abs().max() > 0.1
