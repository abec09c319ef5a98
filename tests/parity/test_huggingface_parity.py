"""A checkpoint that transformers saved, read by us, against transformers' own SamModel.

By default transformers' decoder uses a layer norm eps of 1e-6, segment-anything's 1e-5: the models here are told to
use the latter. What is left is float32 rounding: 2e-5 on embeddings, 1e-4 on logits of size 10.
"""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import SamConfig, SamModel

from data_engine.sam.checkpoint_layouts import from_huggingface, to_huggingface
from data_engine.sam.checkpoints import load_checkpoint
from data_engine.sam.segmenter import load_segmenter

SIDE = 96


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """(folder, transformers' model)"""
    torch.manual_seed(0)
    size = {"image_size": SIDE, "patch_size": 8}
    config = SamConfig(
        vision_config=size
        | {
            "hidden_size": 40,
            "output_channels": 32,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "global_attn_indexes": [1],
            "window_size": 5,
            "num_pos_feats": 16,
            "mlp_dim": 56,
        },
        prompt_encoder_config=size | {"hidden_size": 32, "mask_input_channels": 8},
        mask_decoder_config={
            "hidden_size": 32,
            "num_attention_heads": 4,
            "mlp_dim": 48,
            "iou_head_depth": 4,
            "iou_head_hidden_dim": 24,
            "layer_norm_eps": 1e-5,
        },
    )
    model = SamModel(config).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        if "rel_pos" in name or "pos_embed" in name:
            parameter.normal_(std=0.5)
        elif parameter.dim() == 1:
            parameter.add_(torch.randn_like(parameter) * 0.2)
        else:
            parameter.normal_(std=parameter.shape[-1] ** -0.5)
    folder = tmp_path_factory.mktemp("huggingface")
    model.save_pretrained(folder)
    return folder, model


@pytest.fixture(scope="module")
def picture():
    return np.random.default_rng(0).integers(0, 256, (SIDE, 70, 3), np.uint8)


def test_architecture(saved):
    for path in (saved[0], saved[0] / "model.safetensors"):
        architecture = load_checkpoint(path).architecture
        assert (architecture.embed_dim, architecture.num_heads, architecture.decoder_heads) == (40, 4, 4)
        assert (architecture.image_size, architecture.patch_size, architecture.window_size) == (SIDE, 8, 5)
        assert (architecture.global_blocks, architecture.iou_depth, architecture.mlp_dim) == ((1,), 4, 56)


def test_image_encoder(saved, picture):
    folder, model = saved
    segmenter = load_segmenter(folder, "cpu")
    view = segmenter.prepare(picture)
    pixels = segmenter.model.normalise(view.pixels[None], [view.input_shape])
    torch.testing.assert_close(segmenter.encode([view]).features, model.get_image_embeddings(pixels), rtol=0, atol=2e-5)


@pytest.mark.parametrize("multimask", [True, False])
@pytest.mark.parametrize("kind", ["points", "boxes", "both", "mask"])
def test_answers(saved, picture, kind, multimask):
    folder, model = saved
    segmenter = load_segmenter(folder, "cpu")
    embeddings = segmenter.encode([segmenter.prepare(picture)])
    random = np.random.default_rng(1)
    points = torch.from_numpy(random.uniform(0, SIDE, (6, 2, 2))).float()
    labels = torch.from_numpy(random.integers(0, 2, (6, 2)))
    boxes = torch.from_numpy(np.sort(random.uniform(0, SIDE, (6, 2, 2)), 1)).float().reshape(6, 4)
    masks = torch.from_numpy(random.normal(0, 5, (1, 1, SIDE // 2, SIDE // 2))).float()
    if kind == "mask":
        points, labels, boxes = points[:1], labels[:1], boxes[:1]
    given = {
        "points": {"points": points, "labels": labels},
        "boxes": {"boxes": boxes},
        "both": {"points": points, "labels": labels, "boxes": boxes},
        "mask": {"points": points, "labels": labels, "masks": masks},
    }[kind]
    decoded = segmenter.decode(embeddings, 0, **given, multimask=multimask)
    theirs = model(
        image_embeddings=embeddings.features,
        input_points=given["points"][None] if "points" in given else None,
        input_labels=given["labels"][None] if "labels" in given else None,
        input_boxes=given["boxes"][None] if "boxes" in given else None,
        input_masks=given.get("masks"),
        multimask_output=multimask,
    )
    torch.testing.assert_close(decoded.iou, theirs.iou_scores[0], rtol=0, atol=1e-4)
    logits = decoded.logits(torch.ones_like(decoded.iou, dtype=torch.bool))
    torch.testing.assert_close(logits, theirs.pred_masks[0].flatten(0, 1), rtol=0, atol=1e-4)


def test_renaming_is_reversible(saved, tmp_path):
    """Our state under Hugging Face's names is a file that transformers loads back to the same model."""
    folder, model = saved
    state = load_file(folder / "model.safetensors")
    back = to_huggingface(from_huggingface(state))
    save_file({key: value.clone() for key, value in back.items()}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    again, report = SamModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    for key, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[key], value), key


def test_a_file_that_kept_the_other_name_of_the_shared_tensor(saved, tmp_path):
    """The positional matrix has two names in a SamModel; writers that drop duplicates keep either one."""
    state = load_file(saved[0] / "model.safetensors")
    names = ("shared_image_embedding.positional_embedding", "prompt_encoder.shared_embedding.positional_embedding")
    matrix = next(state.pop(name) for name in names if name in state)
    config = (saved[0] / "config.json").read_text()
    expected = load_checkpoint(saved[0]).state
    for kept in ([names[0]], [names[1]], names):
        only = {key: value for key, value in state.items() if key not in names}
        save_file(only | {name: matrix.clone() for name in kept}, tmp_path / "model.safetensors")
        (tmp_path / "config.json").write_text(config)
        loaded = load_checkpoint(tmp_path).state
        assert loaded.keys() == expected.keys()
        assert all(torch.equal(loaded[key], expected[key]) for key in expected)


def test_a_config_that_is_no_model_configuration(saved, tmp_path):
    from data_engine.errors import CheckpointError

    (tmp_path / "model.safetensors").write_bytes((saved[0] / "model.safetensors").read_bytes())
    for text in ("{", "[]", json.dumps({"mask_decoder_config": {"num_attention_heads": "many"}})):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(CheckpointError, match=r"config\.json"):
            load_checkpoint(tmp_path)
