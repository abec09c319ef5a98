"""The prompt encoder and the mask decoder against segment-anything's, prompt by kind of prompt.

float64 shows that the sums are the same sums (1e-9), float32 that nothing is lost in practice: logits here are of
size 1 to 10 and scores of size 1, and rounding differs by about 2e-6.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from parity.small_sam import SMALL, both


def prompts(count: int, points: int = 0, box: bool = False, mask: bool = False) -> dict[str, torch.Tensor | None]:
    random = np.random.default_rng(count + points)
    side, logits = SMALL.image_size, 4 * SMALL.grid
    corners = np.sort(random.uniform(0, side, (count, 2, 2)), 1).reshape(count, 4)
    given = {
        "points": random.uniform(0, side, (count, points, 2)) if points else None,
        "labels": random.integers(-1, 2, (count, points)) if points else None,
        "boxes": corners if box else None,
        "masks": random.normal(0, 5, (count, 1, logits, logits)) if mask else None,
    }
    return {name: None if value is None else torch.from_numpy(value) for name, value in given.items()}


KINDS = {
    "point": prompts(4, points=1),
    "points": prompts(3, points=5),
    "box": prompts(4, box=True),
    "points and box": prompts(3, points=2, box=True),
    "mask": prompts(2, mask=True),
    "point and mask": prompts(3, points=1, mask=True),
    "everything": prompts(2, points=3, box=True, mask=True),
    "nothing": prompts(1),
    "many": prompts(150, points=1),
}


def as_type(given, dtype):
    return {k: v.to(dtype) if v is not None and v.is_floating_point() else v for k, v in given.items()}


def embed(ours, theirs, given):
    """(tokens, dense) of ours, and of theirs."""
    labelled = None if given["points"] is None else (given["points"], given["labels"])
    return ours.prompt_encoder(**given), theirs.prompt_encoder(labelled, given["boxes"], given["masks"])


@pytest.mark.parametrize("given", KINDS.values(), ids=KINDS.keys())
def test_prompt_encoder(given):
    ours, theirs = both()
    (tokens, dense), (their_tokens, their_dense) = embed(ours, theirs, as_type(given, torch.float32))
    torch.testing.assert_close(tokens, their_tokens, rtol=0, atol=1e-5)
    cells = their_dense.flatten(2).mT
    torch.testing.assert_close(dense.expand_as(cells), cells, rtol=0, atol=1e-5)


def test_dense_positions():
    ours, theirs = both()
    expected = theirs.prompt_encoder.get_dense_pe()[0].flatten(1).mT
    torch.testing.assert_close(ours.prompt_encoder.dense_positions(), expected, rtol=0, atol=1e-5)


DECODERS = {
    "as released": {},
    "three layers": {"decoder_depth": 3},
    "one layer": {"decoder_depth": 1},
    "no downsampling": {"attention_downsample": 1},
    "wide": {"dim": 64, "decoder_heads": 4, "decoder_mlp_dim": 100, "iou_hidden_dim": 70},
    "deep IoU head, five masks": {"iou_depth": 4, "num_masks": 5},
}


def decode_both(architecture, given, dtype, *, multimask=True):
    """(logits, IoU) of ours, and of theirs, from the same tokens and embedding."""
    ours, theirs = both(architecture)
    tokens, dense = theirs.prompt_encoder(
        None if given["points"] is None else (given["points"], given["labels"]), given["boxes"], given["masks"]
    )
    tokens, dense = tokens.to(dtype), dense.to(dtype)
    image = torch.from_numpy(np.random.default_rng(3).standard_normal((1, architecture.dim, 8, 8))).to(dtype)
    positions = theirs.prompt_encoder.get_dense_pe().to(dtype)
    expected = theirs.mask_decoder.to(dtype)(image, positions, tokens, dense, multimask)

    shared = image[0].flatten(1).mT
    cells = shared + (dense[0, :, 0, 0] if given["masks"] is None else dense.flatten(2).mT)
    decoder = ours.mask_decoder.to(dtype)
    decoded = decoder.read(cells, positions[0].flatten(1).mT, tokens)
    outputs = slice(1, None) if multimask else slice(0, 1)
    return (
        decoder.mask_logits(decoded.image, decoder.mask_weights(decoded, outputs)),
        decoded.iou[:, outputs],
    ), expected


@pytest.mark.parametrize("given", KINDS.values(), ids=KINDS.keys())
@pytest.mark.parametrize("multimask", [True, False])
def test_mask_decoder(given, multimask):
    given = as_type(given, torch.float32)
    ours, theirs = decode_both(SMALL, given, torch.float64, multimask=multimask)
    for mine, yours in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, yours, rtol=0, atol=1e-9)
    if len(theirs[1]) > 1:
        assert theirs[1].std(0).min() > 1e-5  # the prompts have different answers, or the test would see nothing


@pytest.mark.parametrize("changes", DECODERS.values(), ids=DECODERS.keys())
@pytest.mark.parametrize("kind", ["point", "point and mask"])
def test_decoder_architectures(changes, kind):
    given = as_type(KINDS[kind], torch.float32)
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 2e-5)):
        ours, theirs = decode_both(replace(SMALL, **changes), given, dtype)
        for mine, yours in zip(ours, theirs, strict=True):
            torch.testing.assert_close(mine, yours, rtol=0, atol=tolerance)


def test_released_decoder_size():
    """The real width, heads and grid of the decoder: 64 x 64 cells, 256 channels, 8 heads."""
    architecture = replace(
        SMALL, image_size=1024, dim=256, mask_hidden_dim=16, decoder_heads=8, decoder_mlp_dim=2048, iou_hidden_dim=256
    )
    ours, theirs = both(architecture)
    random = np.random.default_rng(5)
    features = torch.from_numpy(random.standard_normal((1, 256, 64, 64), np.float32))
    points = torch.from_numpy(random.uniform(0, 1024, (3, 1, 2))).float()
    (tokens, dense), (their_tokens, their_dense) = embed(
        ours, theirs, {"points": points, "labels": torch.ones(3, 1), "boxes": None, "masks": None}
    )
    positions = theirs.prompt_encoder.get_dense_pe()
    expected = theirs.mask_decoder(features, positions, their_tokens, their_dense, True)
    decoded = ours.mask_decoder.read(features[0].flatten(1).mT + dense, ours.prompt_encoder.dense_positions(), tokens)
    logits = ours.mask_decoder.mask_logits(decoded.image, ours.mask_decoder.mask_weights(decoded, slice(1, None)))
    torch.testing.assert_close(logits, expected[0], rtol=0, atol=1e-4)
    torch.testing.assert_close(decoded.iou[:, 1:], expected[1], rtol=0, atol=1e-4)


@pytest.mark.parametrize("shape", [(SMALL.grid**2, SMALL.dim), (3, SMALL.grid**2, SMALL.dim)])
def test_reading_changes_nothing_that_it_was_given(shape):
    """Without gradients, later layers write where the layer before has."""
    decoder = both(SMALL)[0].mask_decoder
    random = torch.Generator().manual_seed(0)
    given = [torch.randn(size, generator=random) for size in (shape, shape[-2:], (3, 2, SMALL.dim))]
    before = [tensor.clone() for tensor in given]
    with torch.enable_grad():
        expected = decoder.read(*given)
    with torch.inference_mode():
        found = decoder.read(*given)
    assert all(torch.equal(tensor, old) for tensor, old in zip(given, before, strict=True))
    torch.testing.assert_close(found.image, expected.image.detach(), rtol=0, atol=1e-6)
    torch.testing.assert_close(found.iou, expected.iou.detach(), rtol=0, atol=1e-6)
