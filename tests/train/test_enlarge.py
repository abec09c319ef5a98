"""A model for a larger input keeps what it has learnt: near distances, and answers where nothing has changed."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from train.tiny_training import ARCHITECTURE, config_for, write_photographs

from data_engine.errors import ConfigError
from data_engine.sam.checkpoint_export import write_checkpoint
from data_engine.train.__main__ import start_model
from data_engine.train.enlarge import enlarged
from data_engine.train.initialise import new_model


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = new_model(ARCHITECTURE)
    for name, parameter in model.named_parameters():
        if "rel_pos" in name:
            torch.nn.init.normal_(parameter)
    return model


def test_at_its_own_size_it_is_the_same_model(model):
    same = enlarged(ARCHITECTURE, model.state_dict(), ARCHITECTURE.image_size)
    for name, tensor in model.state_dict().items():
        assert torch.equal(same.state_dict()[name], tensor), name


def test_known_distances_keep_their_embedding_and_larger_ones_get_the_last(model):
    grid = ARCHITECTURE.grid
    larger = enlarged(ARCHITECTURE, model.state_dict(), 2 * ARCHITECTURE.image_size)
    before, after = (m.image_encoder.blocks[1].attn.rel_pos_h for m in (model, larger))
    assert len(after) == 4 * grid - 1
    for distance in range(1 - 2 * grid, 2 * grid):
        near = max(1 - grid, min(grid - 1, distance))
        assert torch.equal(after[distance + 2 * grid - 1], before[near + grid - 1])
    assert torch.equal(
        larger.image_encoder.blocks[0].attn.rel_pos_h, model.image_encoder.blocks[0].attn.rel_pos_h
    )  # windows do not grow


def test_zoom_keeps_a_click_as_sharp_relative_to_a_cell(model):
    larger = enlarged(ARCHITECTURE, model.state_dict(), 2 * ARCHITECTURE.image_size, zoom=2.0)

    def likeness_of_neighbours(positions, grid):
        return (positions[0] * positions[1]).sum() / positions.shape[1] - (
            positions[0] * positions[grid]
        ).sum() / positions.shape[1]

    before = model.prompt_encoder.dense_positions()
    after = larger.prompt_encoder.dense_positions()
    torch.testing.assert_close(
        likeness_of_neighbours(after, 2 * ARCHITECTURE.grid), likeness_of_neighbours(before, ARCHITECTURE.grid)
    )


def test_it_does_not_shrink(model):
    with pytest.raises(ValueError, match="smaller"):
        enlarged(ARCHITECTURE, model.state_dict(), ARCHITECTURE.image_size // 2)


def test_a_training_starts_from_the_weights_that_its_recipe_names(model, tmp_path):
    photographs = write_photographs(tmp_path / "photographs")
    path = tmp_path / "small.safetensors"
    write_checkpoint(ARCHITECTURE, model.state_dict(), path, "segment-anything")
    larger = replace(ARCHITECTURE, image_size=2 * ARCHITECTURE.image_size)
    started = start_model(config_for(photographs, architecture=larger, start=path))
    assert torch.equal(started.state_dict()["mask_decoder.iou_token.weight"], model.mask_decoder.iou_token.weight)
    assert started.architecture == larger
    with pytest.raises(ConfigError, match="cannot grow"):
        start_model(config_for(photographs, architecture=replace(larger, mlp_dim=16), start=path))
