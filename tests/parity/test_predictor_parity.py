"""SamPredictor against segment-anything's, call by call, on the same weights.

Logits may differ by float32 rounding (1e-4 of values up to 10). Masks are logits above zero, so they may differ only
where the reference's logit is closer to zero than that.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from parity import reference
from parity.small_sam import SMALL, random_sam

from data_engine.sam.predictor import SamPredictor
from data_engine.sam.segmenter import load_segmenter

TOLERANCE = 1e-4
SHAPES = {
    "landscape": (90, 150),
    "portrait": (211, 87),
    "tiny": (5, 3),
    "large": (300, 400),
    "square": (128, 128),
    "strip": (2, 240),
}


@pytest.fixture(scope="module")
def predictors(tmp_path_factory):
    """(ours, theirs): ours from the file that theirs was saved to."""
    theirs = random_sam(SMALL)
    path = tmp_path_factory.mktemp("weights") / "sam.pth"
    torch.save(theirs.state_dict(), path)
    return SamPredictor(load_segmenter(path, "cpu")), reference.SamPredictor(theirs)


def picture(height: int, width: int) -> np.ndarray:
    """Noise on a ramp, so that every place and every channel is different."""
    random = np.random.default_rng(height * width)
    ramp = np.linspace(0, 200, width)[None, :, None] * np.array([1.0, 0.5, 0.2])
    return (ramp + random.integers(0, 56, (height, width, 3))).astype(np.uint8)


def assert_same_answer(ours, theirs):
    for mine, yours in zip(ours, theirs, strict=True):
        assert mine.shape == yours.shape
        assert mine.dtype == yours.dtype
        np.testing.assert_allclose(mine, yours, rtol=0, atol=TOLERANCE)


def predict_both(predictors, **prompts):
    """Compares logits, then masks; returns our answer."""
    ours, theirs = (p.predict(**prompts, return_logits=True) for p in predictors)
    assert_same_answer(ours, theirs)
    masks, scores, _ = predictors[0].predict(**prompts)
    expected = predictors[1].predict(**prompts)[0]
    assert masks.dtype == expected.dtype == bool
    assert (np.abs(theirs[0][masks != expected]) <= TOLERANCE).all()
    np.testing.assert_array_equal(scores, ours[1])
    return ours


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
@pytest.mark.parametrize("order", ["RGB", "BGR"])
def test_images(predictors, shape, order):
    height, width = shape
    image = picture(height, width)
    for predictor in predictors:
        predictor.set_image(image, order)
    features = [predictor.get_image_embedding() for predictor in predictors]
    torch.testing.assert_close(*features, rtol=0, atol=2e-5)
    point = np.array([[width * 0.7, height * 0.2]])
    logits = predict_both(predictors, point_coords=point, point_labels=np.array([1]))[0]
    assert logits.shape == (3, height, width)


def test_channel_order_matters(predictors):
    image = picture(90, 150)
    predictor = predictors[0]
    predictor.set_image(image)
    rgb = predictor.get_image_embedding()
    predictor.set_image(image[..., ::-1], "BGR")
    assert torch.equal(predictor.get_image_embedding(), rgb)
    predictor.set_image(image, "BGR")
    assert not torch.allclose(predictor.get_image_embedding(), rgb, atol=1e-2)


@pytest.fixture
def with_image(predictors):
    for predictor in predictors:
        predictor.set_image(picture(90, 150))
    return predictors


POINTS = {"point_coords": np.array([[20, 30], [140, 80], [75, 0]]), "point_labels": np.array([1, 0, 1])}
PROMPTS = {
    "points": POINTS,
    "box": {"box": np.array([10, 20, 90, 80])},
    "box in a row": {"box": np.array([[10.5, 20.25, 90, 80]])},
    "points and box": POINTS | {"box": np.array([10, 20, 90, 80])},
    "nothing": {},
}


@pytest.mark.parametrize("prompts", PROMPTS.values(), ids=PROMPTS.keys())
@pytest.mark.parametrize("multimask", [True, False])
def test_prompts_and_refinement(with_image, prompts, multimask):
    """One prompt, then again with the first answer's low-resolution logits."""
    _, scores, low = predict_both(with_image, **prompts, multimask_output=multimask)
    assert len(scores) == (3 if multimask else 1)
    best = low[[scores.argmax()]]
    predict_both(with_image, **prompts, mask_input=best, multimask_output=multimask)


def test_many_prompts_at_once(with_image):
    random = np.random.default_rng(0)
    points = torch.from_numpy(random.uniform(0, 128, (20, 2, 2))).float()
    labels = torch.from_numpy(random.integers(0, 2, (20, 2)))
    boxes = torch.from_numpy(np.sort(random.uniform(0, 77, (20, 2, 2)), 1)).float().reshape(20, 4)
    masks = torch.from_numpy(random.normal(0, 5, (20, 1, 32, 32))).float()
    for arguments in (
        (points, labels),
        (points, labels, boxes),
        (None, None, boxes),
        (points, labels, boxes, masks),
        (points, labels, None, masks[:1]),  # one mask for all the prompts
    ):
        for multimask in (True, False):
            ours, theirs = (
                p.predict_torch(*arguments, multimask_output=multimask, return_logits=True) for p in with_image
            )
            assert_same_answer([t.numpy() for t in ours], [t.numpy() for t in theirs])


def test_inputs_are_left_alone(with_image):
    points, box = POINTS["point_coords"].astype(float), np.array([10.0, 20.0, 90.0, 80.0])
    before = points.copy(), box.copy()
    with_image[0].predict(points, POINTS["point_labels"], box)
    np.testing.assert_array_equal(points, before[0])
    np.testing.assert_array_equal(box, before[1])
