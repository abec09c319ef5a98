"""Which files load, and what is said about those that do not."""

from __future__ import annotations

import hashlib
import os
import pickle
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from data_engine.errors import CheckpointError
from data_engine.sam import checkpoints
from data_engine.sam.checkpoint_layouts import to_huggingface
from data_engine.sam.checkpoints import load_checkpoint
from data_engine.sam.model import Sam, SamArchitecture

# Other sizes than any released model in every place that a checkpoint shows.
ODD = SamArchitecture(
    embed_dim=40,
    depth=4,
    num_heads=5,
    mlp_dim=72,
    global_blocks=(0, 3),
    image_size=96,
    patch_size=12,
    window_size=5,
    dim=48,
    mask_hidden_dim=12,
    decoder_depth=3,
    decoder_mlp_dim=88,
    attention_downsample=3,
    num_masks=5,
    iou_hidden_dim=20,
    iou_depth=4,
)


def state_of(architecture: SamArchitecture) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {key: torch.randn_like(tensor) for key, tensor in Sam(architecture).state_dict().items()}


@pytest.fixture
def state():
    return state_of(ODD)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"global_blocks": ()},
        {"global_blocks": (0, 1, 2, 3), "window_size": 8},  # no windows at all: the size of one leaves no trace
        {"window_size": 14},
        {"depth": 12, "global_blocks": (2, 5, 8, 11)},  # ten blocks and more: not in the order of their names
        {"patch_size": 4, "image_size": 64},
        {"num_heads": 1},
        {"attention_downsample": 1, "decoder_depth": 1},
    ],
)
@pytest.mark.parametrize("layout", ["segment-anything", "Hugging Face"])
def test_every_size_is_read_off_the_tensors(changes, layout, tmp_path):
    architecture = replace(ODD, **changes)
    state = state_of(architecture)
    if layout == "segment-anything":
        path = tmp_path / "sam.pth"
        torch.save(state, path)
    else:
        path = tmp_path / "model.safetensors"
        save_file({key: value.clone() for key, value in to_huggingface(state).items()}, path)
    loaded = load_checkpoint(path)
    assert loaded.architecture == architecture
    assert loaded.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert loaded.state.keys() == state.keys()
    assert all(torch.equal(loaded.state[key], state[key]) for key in state)


def saved(path, loaded):
    torch.save(loaded, path)
    return path


def test_ways_to_wrap_a_state_dict(state, tmp_path):
    constants = {"pixel_mean": torch.zeros(3, 1, 1), "pixel_std": torch.ones(3, 1, 1)}
    for loaded in (
        {"model": state, "optimizer": {"step": 3}},
        {"state_dict": state, "epoch": 7},
        {f"module.{key}": value for key, value in state.items()},
        state | constants,
        {key: value.half() for key, value in state.items()},
    ):
        found = load_checkpoint(saved(tmp_path / "sam.pth", loaded))
        assert found.state.keys() == state.keys()
        for key, value in found.state.items():
            torch.testing.assert_close(value, state[key], rtol=1e-3, atol=1e-3)


def test_the_container_is_known_by_its_content(state, tmp_path):
    expected = load_checkpoint(saved(tmp_path / "sam.pth", state)).state
    torch.save(state, tmp_path / "zip.safetensors")
    torch.save(state, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    save_file(state, tmp_path / "safe.pth")
    for name in ("zip.safetensors", "old.pth", "safe.pth"):
        found = load_checkpoint(tmp_path / name).state
        assert all(torch.equal(found[key], expected[key]) for key in expected)


def refused(path) -> str:
    """The one line that refuses a file. Naming the file and saying what to do is part of every one."""
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(path)
    text = str(caught.value)
    assert str(path) in text
    assert "\n" not in text
    assert any(remedy in text for remedy in ("fetch it again", "use a known model", "git lfs pull", "never load one"))
    return text


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("empty.pth", b"", "empty"),
        ("sam.pth", b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n", "git-LFS pointer"),
        ("sam.pth", b"\n<!DOCTYPE html><html>404</html>", "web page"),
        ("sam.pth", b"hello, this is not a model", "neither a torch file nor safetensors"),
        ("sam.pth", bytes(1000), "neither"),
        ("sam.safetensors", bytes(1000), "damaged"),
        ("sam.safetensors", bytes(8) + b"{, this is not a model", "damaged"),
        ("picture.jpg", b"\xff\xd8\xff\xe0" + bytes(600), "neither"),
    ],
)
def test_files_that_are_something_else(name, content, said, tmp_path):
    path = tmp_path / name
    path.write_bytes(content)
    assert said in refused(path)


@pytest.mark.parametrize("kind", ["zip", "old", "safetensors"])
@pytest.mark.parametrize("share", [0.001, 0.3, 0.999])
def test_truncated_files(kind, share, state, tmp_path):
    path = tmp_path / "sam"
    if kind == "safetensors":
        save_file(state, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=kind == "zip")
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    assert "damaged" in refused(path)


class Bomb:
    def __reduce__(self):
        return os.system, ("touch executed",)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("wrap", [lambda state: state | {"x": Bomb()}, lambda state: Bomb()], ids=["inside", "alone"])
def test_code_in_a_pickle_never_runs(zipped, wrap, state, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(wrap(state), tmp_path / "sam.pth", _use_new_zipfile_serialization=zipped)
    text = refused(tmp_path / "sam.pth")
    assert "more than tensors" in text
    assert "system" in text  # what it would have called
    assert "weights_only" not in text  # torch's advice is to switch its protection off
    (tmp_path / "bare.pkl").write_bytes(pickle.dumps(wrap(state)))
    refused(tmp_path / "bare.pkl")
    assert not (tmp_path / "executed").exists()
    if zipped:  # the bomb is a real one
        torch.load(tmp_path / "sam.pth", weights_only=False)
        assert (tmp_path / "executed").exists()


@pytest.mark.parametrize("loaded", [[1, 2], {"a": 1}, {1: torch.zeros(2)}, {}, torch.zeros(3), {"a": torch.zeros(2)}])
def test_torch_files_of_something_else(loaded, tmp_path):
    refused(saved(tmp_path / "other.pth", loaded))


def test_another_network_is_named_by_what_it_holds(tmp_path):
    text = refused(saved(tmp_path / "resnet.pth", {"conv1.weight": torch.zeros(64, 3, 7, 7)}))
    assert "not a SAM" in text
    assert "conv1.weight" in text


@pytest.fixture
def refused_state(tmp_path, monkeypatch):
    """`refused` for a state dict that needs no file: hundreds of them take a while to write."""
    path = tmp_path / "sam.pth"
    path.touch()

    def judge(state):
        monkeypatch.setattr(checkpoints, "read_state", lambda path: state)
        return refused(path)

    return judge


TINY = replace(ODD, depth=1, global_blocks=(), decoder_depth=1, num_masks=2, iou_depth=2)


def test_any_missing_tensor_is_named(refused_state):
    state = state_of(TINY)
    for key in state:
        assert key in refused_state({name: tensor for name, tensor in state.items() if name != key})


def test_unknown_tensors_are_named(state, tmp_path):
    extra = {"mask_decoder.hf_token.weight": torch.zeros(1, 48)}  # SAM-HQ: a SAM and more, not a SAM
    text = refused(saved(tmp_path / "hq.pth", state | extra))
    assert "mask_decoder.hf_token.weight is not part of a SAM" in text


def test_many_problems_are_counted(state, tmp_path):
    halves = {key: value for key, value in state.items() if "norm" not in key}
    assert "more)" in refused(saved(tmp_path / "sam.pth", halves))


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t[None],
        lambda t: t.flatten(),
        lambda t: t.flatten()[0],
        lambda t: t[:0],
        lambda t: torch.cat([t, t]),
        lambda t: torch.cat([t, t], -1),
        lambda t: t[..., :-1],
    ],
    ids=["one dimension more", "flat", "scalar", "empty", "twice as high", "twice as wide", "one column less"],
)
def test_any_tensor_of_a_wrong_shape_is_refused(change, refused_state):
    state = state_of(TINY)
    for key, tensor in state.items():
        changed = change(tensor)
        if changed.shape != tensor.shape:
            refused_state(state | {key: changed})


def test_missing_layers_and_odd_heads(state, tmp_path):
    def without(prefix):
        return saved(tmp_path / "sam.pth", {key: value for key, value in state.items() if not key.startswith(prefix)})

    assert "without gaps" in refused(without("image_encoder.blocks.1."))
    refused(without("image_encoder.blocks.0."))
    refused(without("image_encoder.blocks."))
    refused(without("mask_decoder.transformer.layers.1."))

    wide = {key: torch.zeros(len(tensor), 80) for key, tensor in state.items() if "rel_pos" in key}
    assert "no heads of 80" in refused(saved(tmp_path / "sam.pth", state | wide))

    save_file({k: v.clone() for k, v in to_huggingface(state).items()}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"mask_decoder_config": {"num_attention_heads": 7}}')
    assert "7 heads" in refused(tmp_path / "model.safetensors")


def test_windows_that_contradict_the_grid(state, tmp_path):
    """The position table enlarged for larger images, the relative positions not."""
    larger = state | {"image_encoder.pos_embed": torch.zeros(1, 10, 10, ODD.embed_dim)}
    assert "windows of different sizes" in refused(saved(tmp_path / "sam.pth", larger))


def test_names_and_paths_that_lead_nowhere(tmp_path, monkeypatch):
    with pytest.raises(CheckpointError, match=r"sam_vit_z.*sam_vit_b"):
        load_checkpoint("sam_vit_z")
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        load_checkpoint(tmp_path)
    monkeypatch.setattr(checkpoints, "STARTER_FILE", tmp_path / "starter.safetensors")
    with pytest.raises(CheckpointError, match="reinstall"):
        load_checkpoint("starter")


def test_a_file_that_cannot_be_read(state, tmp_path, monkeypatch):
    def denied(path):
        raise PermissionError(13, "Permission denied")

    path = saved(tmp_path / "sam.pth", state)
    monkeypatch.setattr(checkpoints, "sha256_of", denied)
    with pytest.raises(CheckpointError, match=r"sam\.pth cannot be read: Permission denied"):
        load_checkpoint(path)
