"""Before an output is claimed: is the model a SAM, is there a device."""

from __future__ import annotations

import pytest
import torch
from pipeline.tiny_job import config_for
from safetensors.torch import load_file, save_file

from data_engine.errors import CheckpointError, UsageError
from data_engine.pipeline import preflight
from data_engine.pipeline.preflight import check_model


def test_a_good_model_is_judged_by_its_shapes_alone(tiny_model, tmp_path, monkeypatch):
    monkeypatch.setattr(preflight, "load_checkpoint", pytest.fail)
    check_model(config_for(tiny_model))
    torch.save({"model": load_file(tiny_model)}, tmp_path / "m.pth")
    check_model(config_for(tmp_path / "m.pth"))
    check_model(config_for("starter"))


def test_what_is_no_sam_is_refused_with_the_words_of_loading_it(tiny_model, tmp_path):
    state = load_file(tiny_model)
    path = tmp_path / "m.safetensors"
    for wrong, says in (
        ({"x": torch.zeros(3)}, "not a SAM checkpoint"),
        (state | {"mask_decoder.hf_mlp.weight": torch.zeros(3)}, "not a plain SAM checkpoint"),
        ({key: value for key, value in state.items() if "iou_token" not in key}, "iou_token"),
    ):
        save_file(wrong, path)
        with pytest.raises(CheckpointError, match=says):
            check_model(config_for(path))
    path.write_bytes(tiny_model.read_bytes()[:3000])
    with pytest.raises(CheckpointError, match="cut off or damaged"):
        check_model(config_for(path))
    path.write_text("<html>")
    with pytest.raises(CheckpointError, match="web page"):
        check_model(config_for(path))
    with pytest.raises(CheckpointError, match="no file"):
        check_model(config_for(tmp_path / "nowhere.pth"))


def test_a_device_is_looked_for_where_the_work_is_done(tiny_model):
    with pytest.raises(UsageError, match="tpu"):
        check_model(config_for(tiny_model, "run.device=tpu"))
    check_model(config_for(tiny_model, "run.device=tpu", "run.engine=ray"))  # its nodes look for themselves
