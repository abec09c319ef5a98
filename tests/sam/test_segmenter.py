"""SamSegmenter: what every caller of the model relies on, whatever the weights."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from parity.small_sam import SMALL, both, random_sam, small_segmenter

from data_engine.errors import ModelFailure, UsageError
from data_engine.sam.predictor import SamPredictor
from data_engine.sam.segmenter import SamSegmenter, choose_device, load_segmenter

SIDE = SMALL.image_size


@pytest.fixture(scope="module")
def segmenter():
    return small_segmenter()


def picture(height: int = 90, width: int = 120, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def points(count: int) -> dict[str, torch.Tensor]:
    place = torch.from_numpy(np.random.default_rng(1).uniform(0, SIDE, (count, 1, 2))).float()
    return {"points": place, "labels": torch.ones(count, 1, dtype=torch.int)}


def part(prompts, rows):
    return {name: value[rows] for name, value in prompts.items()}


def everything(decoded):
    return decoded.logits(torch.ones_like(decoded.iou, dtype=torch.bool))


@pytest.fixture(scope="module")
def embeddings(segmenter):
    return segmenter.encode([segmenter.prepare(picture(seed=seed)) for seed in range(2)])


def test_a_view_is_the_image_in_the_corner_of_the_frame(segmenter):
    view = segmenter.prepare(picture(SIDE // 2, SIDE))
    assert view.input_shape == view.shape == (SIDE // 2, SIDE)
    assert view.pixels.dtype == torch.uint8
    np.testing.assert_array_equal(view.pixels[:, : SIDE // 2], picture(SIDE // 2, SIDE).transpose(2, 0, 1))
    assert not view.pixels[:, SIDE // 2 :].any()
    halved = segmenter.prepare(picture(2 * SIDE, SIDE))
    assert (halved.input_shape, halved.shape) == ((SIDE, SIDE // 2), (2 * SIDE, SIDE))


def test_an_image_s_embedding_does_not_depend_on_its_company(segmenter, embeddings):
    for seed in range(2):
        alone = segmenter.encode([segmenter.prepare(picture(seed=seed))]).features
        assert torch.equal(alone[0], embeddings.features[seed])
    assert not torch.equal(embeddings.features[0], embeddings.features[1])


def test_decode_answers_for_the_view_asked_for(segmenter, embeddings):
    alone = segmenter.encode([segmenter.prepare(picture(seed=1))])
    expected = segmenter.decode(alone, 0, **points(3)).iou
    assert torch.equal(segmenter.decode(embeddings, 1, **points(3)).iou, expected)
    assert not torch.equal(segmenter.decode(embeddings, 0, **points(3)).iou, expected)


@pytest.mark.parametrize("size", [1, 5, 16])
def test_chunks_of_any_size_answer_the_same(segmenter, embeddings, size):
    """Up to rounding: matrix products of another height may add in another order."""
    prompts = points(17)
    whole = segmenter.decode(embeddings, 0, **prompts)
    chunks = [segmenter.decode(embeddings, 0, **part(prompts, slice(i, i + size))) for i in range(0, 17, size)]
    torch.testing.assert_close(torch.cat([chunk.iou for chunk in chunks]), whole.iou, rtol=0, atol=1e-5)
    logits = torch.cat([everything(chunk) for chunk in chunks])
    torch.testing.assert_close(logits, everything(whole), rtol=0, atol=5e-5)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("multimask", [True, False])
def test_only_the_wanted_logits_in_order(segmenter, embeddings, share, multimask):
    decoded = segmenter.decode(embeddings, 0, **points(20), multimask=multimask)
    assert decoded.iou.shape == (20, 3 if multimask else 1)
    wanted = torch.from_numpy(np.random.default_rng(2).random(decoded.iou.shape) < share)
    full = everything(decoded).unflatten(0, decoded.iou.shape)
    chosen = decoded.logits(wanted)
    assert chosen.shape == (wanted.sum(), segmenter.logits_size, segmenter.logits_size)
    torch.testing.assert_close(chosen, full[wanted], rtol=0, atol=5e-5)
    torch.testing.assert_close(decoded.logits(wanted), chosen, rtol=0, atol=0)  # asking does not use it up


def test_no_prompts_no_answers(segmenter, embeddings):
    decoded = segmenter.decode(embeddings, 0, **points(0))
    assert decoded.iou.shape == (0, 3)
    assert everything(decoded).shape == (0, segmenter.logits_size, segmenter.logits_size)


def test_results_are_plain_float32(segmenter, embeddings):
    decoded = segmenter.decode(embeddings, 0, **points(2))
    for tensor in (embeddings.features, decoded.iou, everything(decoded)):
        assert tensor.dtype == torch.float32
        assert not tensor.requires_grad


def test_finite(embeddings):
    assert embeddings.finite()
    broken = embeddings.features.clone()
    broken[1, 3, 2, 1] = float("nan")
    assert not type(embeddings)(broken).finite()


def test_fast_precision_changes_masks_little():
    """bfloat16 keeps 8 bits: embeddings of size 1 move by about 1e-2, and masks at their borders."""
    segmenters = [SamSegmenter(both()[0], torch.device("cpu"), precision) for precision in ("reference", "fast")]
    answers, features = [], []
    for segmenter in segmenters:
        predictor = SamPredictor(segmenter)
        predictor.set_image(picture())
        features.append(predictor.get_image_embedding())
        frame = points(40)
        answers.append(predictor.predict_torch(frame["points"], frame["labels"]))
    difference = (features[0] - features[1]).abs()
    assert 1e-4 < difference.mean() < 2e-2  # the encoder does run in bfloat16, and no worse than that
    (masks, iou, _), (fast_masks, fast_iou, _) = answers
    assert fast_iou.dtype == torch.float32
    assert (iou - fast_iou).abs().max() < 2e-2
    overlap = (masks & fast_masks).sum((-1, -2)) / (masks | fast_masks).sum((-1, -2)).clamp(min=1)
    assert overlap[masks.sum((-1, -2)) > 100].mean() > 0.97


@pytest.fixture
def tf32_as_it_was():
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


@pytest.mark.usefixtures("tf32_as_it_was")
def test_two_precisions_in_one_process(monkeypatch):
    """What CUDA rounds to TF32 is a setting of the process. Each model computes as it was asked to all the same."""
    set_tf32 = SamSegmenter._set_tf32

    def as_on_a_gpu(self):
        set_tf32(SimpleNamespace(device=torch.device("cuda"), precision=self.precision))

    monkeypatch.setattr(SamSegmenter, "_set_tf32", as_on_a_gpu)
    segmenters = {name: SamSegmenter(both()[0], torch.device("cpu"), name) for name in ("reference", "fast")}
    seen = {name: [] for name in segmenters}
    for name, segmenter in segmenters.items():

        def note(*_, name=name):
            seen[name].append((torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32))

        decoder = segmenter.model.mask_decoder
        for part in (segmenter.model.image_encoder, decoder.transformer, decoder.output_hypernetworks_mlps[1]):
            part.register_forward_pre_hook(note)
    encoded = {name: each.encode([each.prepare(picture())]) for name, each in segmenters.items()}
    decoded = [each.decode(encoded[name], 0, **points(1)) for name, each in segmenters.items()]
    for each in decoded:
        everything(each)
    assert {name: set(each) for name, each in seen.items()} == {"reference": {(False, False)}, "fast": {(True, True)}}
    assert min(map(len, seen.values())) >= 3


def test_prompts_per_chunk_is_at_least_one(segmenter):
    assert segmenter.prompts_per_chunk >= 1


@pytest.fixture(scope="module")
def checkpoint_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "sam.pth"
    torch.save(random_sam(SMALL).state_dict(), path)
    return path


def test_loading_a_file(checkpoint_file, segmenter, embeddings):
    loaded = load_segmenter(str(checkpoint_file))
    assert loaded.device == choose_device("auto")
    assert loaded.checkpoint.path == checkpoint_file
    assert loaded.checkpoint.state == {}  # the weights are held once
    assert loaded.model.architecture == SMALL
    assert (loaded.image_size, loaded.logits_size) == (SIDE, 4 * SMALL.grid)
    features = loaded.encode([loaded.prepare(picture())]).features.cpu()
    torch.testing.assert_close(features[0], embeddings.features[0], rtol=0, atol=1e-4)


def test_devices(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_device("auto") == torch.device("cuda")
    assert choose_device("cuda:1") == torch.device("cuda:1")
    assert choose_device("cpu") == torch.device("cpu")
    with pytest.raises(UsageError, match=r"sees 2 CUDA"):
        choose_device("cuda:2")
    with pytest.raises(UsageError, match="unknown device 'gpu'"):
        choose_device("gpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto") == torch.device("cpu")


def test_unknown_precision(checkpoint_file):
    with pytest.raises(UsageError, match="reference"):
        load_segmenter(checkpoint_file, precision="double")


def test_a_gpu_that_others_have_filled(checkpoint_file, monkeypatch):
    def to(self, *_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.\nSee the documentation")

    monkeypatch.setattr(torch.nn.Module, "to", to)
    monkeypatch.setattr("data_engine.sam.segmenter.choose_device", torch.device)
    with pytest.raises(ModelFailure, match=r"^cuda:1 does not take .*MiB\.\): .*nvidia-smi") as caught:
        load_segmenter(checkpoint_file, "cuda:1")
    assert "\n" not in str(caught.value)
    with pytest.raises(torch.OutOfMemoryError):  # a CPU's is another matter
        load_segmenter(checkpoint_file, "cpu")


class TestPredictorUse:
    """SamPredictor used wrongly. Its answers are compared with segment-anything's in tests/parity."""

    @pytest.fixture
    def predictor(self, segmenter):
        return SamPredictor(segmenter)

    @pytest.mark.parametrize("call", ["predict", "get_image_embedding"])
    def test_nothing_before_an_image_is_set(self, predictor, call):
        for _ in range(2):
            with pytest.raises(UsageError, match="set_image"):
                getattr(predictor, call)()
            predictor.set_image(picture())
            getattr(predictor, call)()
            predictor.reset_image()

    def test_a_failed_image_leaves_none_set(self, predictor):
        predictor.set_image(picture())
        with pytest.raises(UsageError):
            predictor.set_image(picture().astype(float))
        with pytest.raises(UsageError, match="set_image"):
            predictor.predict()

    @pytest.mark.parametrize(
        "image",
        [picture()[..., 0], picture()[..., :2], picture().astype(np.float32), picture()[None], picture()[:0]],
        ids=["grey", "two channels", "float", "batch", "empty"],
    )
    def test_images_of_another_kind(self, predictor, image):
        with pytest.raises(UsageError, match="uint8"):
            predictor.set_image(image)

    def test_unknown_channel_order(self, predictor):
        with pytest.raises(UsageError, match="BGR"):
            predictor.set_image(picture(), "HSV")

    def test_prompts_that_do_not_fit(self, predictor):
        predictor.set_image(picture())
        with pytest.raises(UsageError, match="point_labels"):
            predictor.predict(np.array([[1, 2]]))
        with pytest.raises(UsageError, match=r"1x32x32"):
            predictor.predict(mask_input=np.zeros((1, 90, 120)))
