"""What is exported loads here, in segment-anything and in transformers: the same tensors, the same answers."""

from __future__ import annotations

import json
import os
import stat
from dataclasses import replace

import numpy as np
import pytest
import torch
from parity.reference import SamPredictor as ReferencePredictor
from parity.reference import reference_sam, sam_model_registry
from parity.small_sam import SMALL, random_sam
from safetensors.torch import load_file, save_file
from transformers import SamModel, SamProcessor

from data_engine.errors import CheckpointError, UsageError
from data_engine.sam.checkpoint_export import export_checkpoint, write_checkpoint
from data_engine.sam.checkpoint_facts import count_parameters, describe
from data_engine.sam.checkpoints import CACHE_VARIABLE, load_checkpoint, read_checkpoint, registry
from data_engine.sam.model import Sam, SamArchitecture
from data_engine.sam.predictor import SamPredictor
from data_engine.sam.segmenter import load_segmenter

# Other sizes than any released model in every place that both layouts can show.
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
    num_masks=5,
    iou_hidden_dim=20,
    iou_depth=4,
)
ARCHITECTURES = {
    "small": SMALL,
    "odd": ODD,
    "all global": replace(ODD, global_blocks=(0, 1, 2, 3), window_size=8),
    "all windows": replace(ODD, global_blocks=()),
    "deep": replace(ODD, depth=12, global_blocks=(2, 5, 8, 11), decoder_depth=1, iou_depth=2),
}
DESTINATIONS = {"sam.pth": "segment-anything", "sam.safetensors": "segment-anything", "folder": "transformers"}


def state_of(architecture, dtype=torch.float32):
    torch.manual_seed(0)
    state = {key: torch.randn(tensor.shape) for key, tensor in Sam(architecture).state_dict().items()}
    if dtype == "mixed":
        dtypes = (torch.float32, torch.float16, torch.bfloat16)
        return {key: tensor.to(dtypes[i % 3]) for i, (key, tensor) in enumerate(state.items())}
    return {key: tensor.to(dtype) for key, tensor in state.items()}


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for key, tensor in expected.items():
        assert found[key].dtype == tensor.dtype, key
        assert torch.equal(found[key], tensor), key


def sam_file(path, architecture=SMALL):
    """A file of weights with which a network computes something, and the network."""
    sam = random_sam(architecture)
    torch.save(sam.state_dict(), path)
    return path, sam


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, "mixed"], ids=str)
@pytest.mark.parametrize("architecture", ARCHITECTURES.values(), ids=ARCHITECTURES)
def test_every_way_through_both_layouts_keeps_every_bit(architecture, dtype, tmp_path):
    state = state_of(architecture, dtype)
    torch.save(state, tmp_path / "source.pth")
    for first, layout in DESTINATIONS.items():
        export_checkpoint(tmp_path / "source.pth", tmp_path / first, layout)
        for second, other in DESTINATIONS.items():
            again = tmp_path / f"from {first}" / second
            exported = export_checkpoint(tmp_path / first, again, other)
            found = read_checkpoint(again)
            assert_same(found.state, state)
            assert found.architecture == exported.architecture == architecture
            assert (found.sha256, found.layout) == (exported.sha256, other)


def test_the_shipped_file_comes_back_byte_for_byte(tmp_path):
    export_checkpoint("starter", tmp_path / "folder", "transformers")
    export_checkpoint(tmp_path / "folder", tmp_path / "pth" / "starter.pth", "segment-anything")
    back = export_checkpoint(tmp_path / "pth" / "starter.pth", tmp_path / "starter.safetensors", "segment-anything")
    assert back.sha256 == registry()["starter"].sha256


@pytest.mark.parametrize("name", DESTINATIONS)
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_another_dtype(name, dtype, tmp_path):
    torch.save(state_of(SMALL, "mixed"), tmp_path / "source.pth")
    exported = export_checkpoint(tmp_path / "source.pth", tmp_path / name, DESTINATIONS[name], dtype)
    assert exported.dtype == dtype
    target = getattr(torch, dtype)
    expected = {key: tensor.to(target) for key, tensor in state_of(SMALL, "mixed").items()}
    assert_same(read_checkpoint(tmp_path / name).state, expected)


def test_a_value_that_a_dtype_cannot_hold(tmp_path):
    state = state_of(SMALL)
    state["image_encoder.neck.1.weight"][3] = 1e6
    with pytest.raises(CheckpointError, match=r"image_encoder\.neck\.1\.weight.*\(32,\).*1e\+06.*bfloat16"):
        write_checkpoint(SMALL, state, tmp_path / "sam.pth", "segment-anything", "float16")
    assert not list(tmp_path.iterdir())
    write_checkpoint(SMALL, state, tmp_path / "sam.pth", "segment-anything", "bfloat16")


def answers(predictor, architecture):
    """Scores and low-resolution logits of a click and a box."""
    size = architecture.image_size
    image = np.random.default_rng(0).integers(0, 256, (size, size - 10, 3), np.uint8)
    predictor.set_image(image)
    click = {"point_coords": np.array([[size / 3, size / 2]]), "point_labels": np.ones(1)}
    for prompt in (click, {"box": np.array([5.0, 10.0, size / 2, size / 3])}, click | {"multimask_output": False}):
        yield predictor.predict(**prompt)[1:]


@pytest.mark.parametrize("dtype", [None, "float16"])
def test_segment_anything_loads_it_and_answers_alike(dtype, tmp_path):
    source, sam = sam_file(tmp_path / "source.pth")
    export_checkpoint(source, tmp_path / "folder", "transformers", dtype)
    exported = export_checkpoint(tmp_path / "folder", tmp_path / "sam.pth", "segment-anything")
    with exported.path.open("rb") as file:
        state = torch.load(file, weights_only=True)
    theirs = reference_sam(exported.architecture)
    theirs.load_state_dict(state, strict=True)
    if dtype is None:
        assert_same(state, sam.state_dict())
    ours = SamPredictor(load_segmenter(exported.path, "cpu"))
    for mine, yours in zip(answers(ours, SMALL), answers(ReferencePredictor(theirs), SMALL), strict=True):
        for a, b in zip(mine, yours, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def from_pretrained(folder):
    """transformers' model in float32. Nothing may be missing, unknown, or of another shape."""
    model, report = SamModel.from_pretrained(folder, output_loading_info=True, local_files_only=True)
    assert not any(report.values()), report
    return model.float().eval().requires_grad_(False)


@pytest.mark.parametrize("dtype", [None, "float16"])
@pytest.mark.parametrize("architecture", [SMALL, ODD, replace(SMALL, decoder_heads=4)], ids=["small", "odd", "4 heads"])
def test_transformers_loads_it_and_answers_alike(architecture, dtype, tmp_path):
    sam = random_sam(architecture)
    write_checkpoint(architecture, sam.state_dict(), tmp_path / "folder", "transformers", dtype)
    model = from_pretrained(tmp_path / "folder")
    segmenter = load_segmenter(tmp_path / "folder", "cpu")
    assert segmenter.model.architecture == architecture
    size = architecture.image_size
    picture = np.random.default_rng(0).integers(0, 256, (size, size - 10, 3), np.uint8)
    view = segmenter.prepare(picture)
    embeddings = segmenter.encode([view])
    pixels = SamProcessor.from_pretrained(tmp_path / "folder", local_files_only=True)(
        images=picture, return_tensors="pt"
    )["pixel_values"]
    torch.testing.assert_close(
        pixels, segmenter.model.normalise(view.pixels[None], [view.input_shape]), rtol=0, atol=1e-5
    )
    torch.testing.assert_close(embeddings.features, model.get_image_embeddings(pixels), rtol=0, atol=2e-5)
    points = torch.from_numpy(np.random.default_rng(1).uniform(0, size, (6, 2, 2))).float()
    labels = torch.tensor([[1, 0]] * 6)
    for multimask in (True, False):
        decoded = segmenter.decode(embeddings, 0, points=points, labels=labels, multimask=multimask)
        theirs = model(
            image_embeddings=embeddings.features,
            input_points=points[None],
            input_labels=labels[None],
            multimask_output=multimask,
        )
        torch.testing.assert_close(decoded.iou, theirs.iou_scores[0], rtol=0, atol=1e-4)
        logits = decoded.logits(torch.ones_like(decoded.iou, dtype=torch.bool))
        torch.testing.assert_close(logits, theirs.pred_masks[0].flatten(0, 1), rtol=0, atol=1e-4)


def test_transformers_has_every_tensor_under_every_name(tmp_path):
    state = state_of(ODD, torch.float16)
    written = write_checkpoint(ODD, state, tmp_path / "folder", "transformers")
    tensors = load_file(written.weights)
    model = SamModel.from_pretrained(tmp_path / "folder", local_files_only=True)
    assert_same({key: tensor.half() for key, tensor in model.state_dict().items()}, tensors)
    matrix = state["prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"]
    assert sum(tensor.shape == matrix.shape and torch.equal(tensor, matrix) for tensor in tensors.values()) == 2


def test_what_transformers_saved_comes_back_to_it(tmp_path):
    write_checkpoint(ODD, state_of(ODD), tmp_path / "first", "transformers")
    model = from_pretrained(tmp_path / "first")
    model.save_pretrained(tmp_path / "theirs")
    export_checkpoint(tmp_path / "theirs", tmp_path / "sam.pth", "segment-anything")
    export_checkpoint(tmp_path / "sam.pth", tmp_path / "back", "transformers")
    assert_same(from_pretrained(tmp_path / "back").state_dict(), model.state_dict())
    theirs, ours = (json.loads((tmp_path / name / "config.json").read_text()) for name in ("theirs", "back"))
    for part in ("vision_config", "prompt_encoder_config", "mask_decoder_config"):
        named = {"model_type": theirs[part]["model_type"]}  # empty in some of transformers' releases
        assert {**ours[part], **named}.items() <= theirs[part].items()


def test_two_matrices_under_the_two_names_of_one(tmp_path):
    written = write_checkpoint(ODD, state_of(ODD), tmp_path / "folder", "transformers")
    tensors = load_file(written.weights)
    tensors["prompt_encoder.shared_embedding.positional_embedding"] += 1
    save_file(tensors, written.weights)
    with pytest.raises(CheckpointError, match=r"shared_image_embedding.*shared_embedding.*differ"):
        load_checkpoint(tmp_path / "folder")


def test_a_number_of_heads_for_which_there_is_no_place(tmp_path):
    architecture = replace(SMALL, decoder_heads=4)
    write_checkpoint(architecture, state_of(architecture), tmp_path / "folder", "transformers")
    for name in ("sam.pth", "sam.safetensors"):
        with pytest.raises(CheckpointError, match=r"4 heads.*transformers' layout"):
            export_checkpoint(tmp_path / "folder", tmp_path / name, "segment-anything")


def test_a_size_that_transformers_does_not_build(tmp_path):
    architecture = replace(ODD, attention_downsample=3)
    state = state_of(architecture)
    with pytest.raises(CheckpointError, match=r"3 times narrower.*segment-anything's layout"):
        write_checkpoint(architecture, state, tmp_path / "folder", "transformers")
    write_checkpoint(architecture, state, tmp_path / "sam.pth", "segment-anything")
    assert read_checkpoint(tmp_path / "sam.pth").architecture == architecture
    reference_sam(architecture).load_state_dict(torch.load(tmp_path / "sam.pth", weights_only=True), strict=True)


@pytest.mark.parametrize(
    ("name", "layout", "said"),
    [
        ("folder", "segment-anything", r"\.pth at its end"),
        ("sam.bin", "segment-anything", r"\.pth at its end"),
        ("sam.pth", "transformers", "folder"),
        ("model.safetensors", "transformers", "folder"),
        ("file", "transformers", "folder"),
    ],
)
def test_destinations_that_do_not_fit_the_layout(name, layout, said, tmp_path):
    (tmp_path / "file").write_text("theirs")
    with pytest.raises(UsageError, match=said):
        export_checkpoint("a model that nobody looked for yet", tmp_path / name, layout)


@pytest.mark.parametrize("name", DESTINATIONS)
def test_other_weights_are_replaced_only_when_asked(name, tmp_path):
    layout = DESTINATIONS[name]
    state = state_of(SMALL)
    first = write_checkpoint(SMALL, state, tmp_path / name, layout)
    assert write_checkpoint(SMALL, state, tmp_path / name, layout) == first
    changed = {key: tensor + 1 for key, tensor in state.items()}
    with pytest.raises(UsageError, match="--overwrite"):
        write_checkpoint(SMALL, changed, tmp_path / name, layout)
    assert read_checkpoint(tmp_path / name).sha256 == first.sha256
    write_checkpoint(SMALL, changed, tmp_path / name, layout, overwrite=True)
    assert_same(read_checkpoint(tmp_path / name).state, changed)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_file_exported_onto_itself(tmp_path):
    """The weights may still be mapped from the file that is replaced."""
    for name in ("sam.pth", "sam.safetensors"):
        write_checkpoint(SMALL, state_of(SMALL), tmp_path / name, "segment-anything")
        export_checkpoint(tmp_path / name, tmp_path / name, "segment-anything", "float16", overwrite=True)
        assert_same(read_checkpoint(tmp_path / name).state, state_of(SMALL, torch.float16))


@pytest.mark.parametrize("name", DESTINATIONS)
def test_others_may_read_what_they_may_read(name, tmp_path):
    before = os.umask(0o027)
    try:
        written = write_checkpoint(SMALL, state_of(SMALL), tmp_path / name, DESTINATIONS[name])
    finally:
        os.umask(before)
    assert stat.S_IMODE(written.weights.stat().st_mode) == 0o640


@pytest.mark.parametrize("name", DESTINATIONS)
def test_views_of_larger_storages_are_written_alone(name, tmp_path):
    """As a training hands its weights over: parameters with gradients, views, not contiguous."""
    plain = state_of(SMALL)
    state = {}
    for key, tensor in plain.items():
        strange = torch.zeros(3, *reversed(tensor.shape))[1].permute(*reversed(range(tensor.dim())))
        state[key] = torch.nn.Parameter(strange.copy_(tensor))
    written = write_checkpoint(SMALL, state, tmp_path / name, DESTINATIONS[name])
    assert_same(read_checkpoint(tmp_path / name).state, plain)
    assert written.size < 1.5 * sum(tensor.nbytes for tensor in plain.values())


def test_quantised_weights_are_refused(tmp_path):
    state = state_of(SMALL) | {"mask_decoder.iou_token.weight": torch.zeros(1, 32, dtype=torch.int8)}
    torch.save(state, tmp_path / "source.pth")
    with pytest.raises(CheckpointError, match=r"mask_decoder\.iou_token\.weight.*\(1, 32\).*int8"):
        export_checkpoint(tmp_path / "source.pth", tmp_path / "sam.pth", "segment-anything")


def test_constants_and_wrappings_are_left_behind(tmp_path):
    state = state_of(SMALL)
    torch.save({"model": state | {"pixel_mean": torch.zeros(3, 1, 1)}, "step": 3}, tmp_path / "source.pth")
    export_checkpoint(tmp_path / "source.pth", tmp_path / "sam.pth", "segment-anything")
    assert_same(torch.load(tmp_path / "sam.pth", weights_only=True), state)


def test_known_models_are_described_without_fetching_them(tmp_path, monkeypatch):
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    for name, known in registry().items():
        facts = describe(name)
        assert sum(facts.parameters.values()) == known.parameters
        assert (facts.sha256, facts.size, facts.licence) == (known.sha256, known.size, "Apache-2.0")
        assert facts.cached == (name == "starter")
        assert len(known.description) < 40
    assert not (tmp_path / "cache").exists()


def test_parameters_are_counted_as_segment_anything_counts_them():
    sam = reference_sam(ODD)
    parts = {name: sum(p.numel() for p in part.parameters()) for name, part in sam.named_children()}
    assert count_parameters(ODD) == parts


@pytest.mark.slow
def test_vit_b_in_the_classes_of_both(tmp_path):
    """As people load it: sam_model_registry and from_pretrained."""
    architecture = SamArchitecture.vit("b")
    sam = random_sam(architecture)
    torch.save(sam.state_dict(), tmp_path / "source.pth")
    export_checkpoint(tmp_path / "source.pth", tmp_path / "folder", "transformers")
    export_checkpoint(tmp_path / "folder", tmp_path / "vit_b.pth", "segment-anything")
    theirs = sam_model_registry["vit_b"](checkpoint=str(tmp_path / "vit_b.pth"))
    assert_same(theirs.state_dict(), sam.state_dict())
    model = from_pretrained(tmp_path / "folder")
    segmenter = load_segmenter(tmp_path / "vit_b.pth", "cpu")
    picture = np.random.default_rng(0).integers(0, 256, (1024, 1000, 3), np.uint8)
    view = segmenter.prepare(picture)
    features = segmenter.encode([view]).features
    pixels = segmenter.model.normalise(view.pixels[None], [view.input_shape])
    with torch.no_grad():
        torch.testing.assert_close(features, theirs.image_encoder(pixels), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(features, model.get_image_embeddings(pixels), rtol=1e-4, atol=1e-4)
