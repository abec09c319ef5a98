"""AdamW's groups, the schedules, and the average weights."""

from __future__ import annotations

import pytest
import torch
from train.tiny_training import ARCHITECTURE

from data_engine.errors import ConfigError
from data_engine.train.initialise import new_model
from data_engine.train.supervised.average import AverageWeights
from data_engine.train.supervised.optimizer import layer_scale, learning_rate, make_optimizer, trained_parameters
from data_engine.train.supervised.settings import OptimizerSettings
from data_engine.train.supervised.starting_model import freeze


@pytest.fixture(scope="module")
def model():
    return new_model(ARCHITECTURE)


def groups_by_name(model, **settings):
    optimizer = make_optimizer(model, OptimizerSettings(**settings))
    by_id = {id(parameter): group for group in optimizer.param_groups for parameter in group["params"]}
    return {name: by_id[id(parameter)] for name, parameter in trained_parameters(model)}


def test_matrices_decay_and_norms_biases_and_embeddings_do_not(model):
    groups = groups_by_name(model, weight_decay=0.1)
    decayed = {name for name, group in groups.items() if group["weight_decay"] == 0.1}
    assert "image_encoder.blocks.0.attn.qkv.weight" in decayed
    assert "mask_decoder.output_upscaling.0.weight" in decayed
    parameters = dict(model.named_parameters())
    assert all(parameters[name].ndim >= 2 for name in decayed)
    for spared in ("image_encoder.pos_embed", "mask_decoder.iou_token.weight", "image_encoder.blocks.0.attn.rel_pos_h"):
        assert groups[spared]["weight_decay"] == 0


def test_layers_nearer_the_input_learn_more_slowly(model):
    groups = groups_by_name(model, layer_decay=0.5)
    assert groups["mask_decoder.mask_tokens.weight"]["scale"] == 1
    assert groups["image_encoder.neck.0.weight"]["scale"] == 1
    assert groups["image_encoder.blocks.1.mlp.lin1.weight"]["scale"] == 0.5
    assert groups["image_encoder.blocks.0.mlp.lin1.weight"]["scale"] == 0.25
    assert groups["image_encoder.patch_embed.proj.weight"]["scale"] == 0.125
    assert layer_scale("image_encoder.blocks.31.norm1.weight", 32, 0.8) == pytest.approx(0.8)


def test_the_step_schedule_is_sams():
    settings = OptimizerSettings(learning_rate=8e-4, warmup_steps=250, schedule="step")
    rates = {step: learning_rate(settings, step, 90_000) for step in (0, 249, 59_999, 60_004, 86_665, 86_671)}
    assert rates[0] == pytest.approx(8e-4 / 250)
    assert rates[249] == rates[59_999] == pytest.approx(8e-4)
    assert rates[60_004] == rates[86_665] == pytest.approx(8e-5)
    assert rates[86_671] == pytest.approx(8e-6)


def test_the_cosine_falls_to_zero():
    settings = OptimizerSettings(learning_rate=1.0, warmup_steps=10, schedule="cosine")
    assert learning_rate(settings, 50, 100) == pytest.approx(0.5)
    assert learning_rate(settings, 99, 100) < 0.001


def test_frozen_patterns_freeze_what_they_name():
    model = new_model(ARCHITECTURE)
    freeze(model, ("image_encoder.*", "prompt_encoder.point_embeddings.?.weight"))
    trained = {name for name, _ in trained_parameters(model)}
    assert not any(name.startswith("image_encoder.") or "point_embeddings" in name for name in trained)
    assert "prompt_encoder.no_mask_embed.weight" in trained
    with pytest.raises(ConfigError, match=r"no parameter is named like 'image_encodr\.\*'"):
        freeze(model, ("image_encodr.*",))
    with pytest.raises(ConfigError, match="freezes every weight"):
        freeze(model, ("*",))


def test_the_average_follows_and_can_be_put_in_place():
    model = new_model(ARCHITECTURE)
    average = AverageWeights(model, 0.9)
    name, parameter = next(trained_parameters(model))
    before = parameter.detach().clone()
    with torch.no_grad():
        parameter.add_(1)
    average.update(step=10_000)
    torch.testing.assert_close(average.weights[name], before + 0.1)
    with average.in_place():
        torch.testing.assert_close(parameter.detach(), before + 0.1)
    torch.testing.assert_close(parameter.detach(), before + 1)
