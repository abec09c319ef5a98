"""The image encoder against segment-anything's.

In float64 the two may differ by rounding only: 1e-9 on outputs of size 1 leaves no room for a term forgotten or for
an eps that is off. In float32 the same rounding is about 1e-6 here; 2e-5 holds on any machine's kernels.
"""

import numpy as np
import pytest
import torch
from parity.small_sam import SMALL, both

from data_engine.sam.model import SamArchitecture

ARCHITECTURES = {
    "padded windows": {},
    "windows fit": {"window_size": 4},
    "window larger than the grid": {"window_size": 14},
    "no global block": {"global_blocks": ()},
    "all blocks global": {"global_blocks": (0, 1)},
    "patch 8": {"patch_size": 8, "window_size": 7, "image_size": 96},
    "wide and deep": {"embed_dim": 160, "num_heads": 5, "depth": 5, "mlp_dim": 400, "global_blocks": (2, 4)},
    "one head, wide output": {"num_heads": 1, "dim": 64},
}


def images(size: int, count: int = 2) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(1).standard_normal((count, 3, size, size)))


@pytest.mark.parametrize("changes", ARCHITECTURES.values(), ids=ARCHITECTURES.keys())
def test_small_architectures(changes):
    ours, theirs = both(**changes)
    x = images(ours.architecture.image_size)
    with torch.inference_mode():
        single = ours.image_encoder(x.float()), theirs.image_encoder(x.float())
        double = ours.double().image_encoder(x), theirs.double().image_encoder(x)
    assert double[1].std() > 0.1
    torch.testing.assert_close(*double, rtol=0, atol=1e-9)
    torch.testing.assert_close(*single, rtol=0, atol=2e-5)


def test_normalisation_and_padding_are_the_reference_s():
    ours, theirs = both()
    random = np.random.default_rng(2)
    for height, width in ((128, 90), (37, 128), (128, 128)):
        pixels = torch.from_numpy(random.integers(0, 256, (3, height, width), np.uint8))
        frame = torch.full((1, 3, 128, 128), 7, dtype=torch.uint8)  # what lies outside the image must not count
        frame[0, :, :height, :width] = pixels
        expected = theirs.preprocess(pixels[None])
        torch.testing.assert_close(ours.normalise(frame, [(height, width)]), expected, rtol=0, atol=0)


@pytest.mark.slow
def test_vit_b():
    architecture = SamArchitecture.vit("b")
    ours, theirs = both(architecture)
    x = images(architecture.image_size, 1).float()
    with torch.inference_mode():
        torch.testing.assert_close(ours.image_encoder(x), theirs.image_encoder(x), rtol=0, atol=1e-4)


def test_released_sizes_have_the_released_shapes():
    from parity.reference import sam_model_registry

    for size in ("b", "l", "h"):
        with torch.device("meta"):
            theirs = sam_model_registry[f"vit_{size}"]()
        architecture = SamArchitecture.vit(size)
        assert SamArchitecture.of_state(theirs.state_dict()) == architecture
        assert theirs.image_encoder.blocks[0].attn.num_heads == architecture.num_heads
        spans = [block.window_size for block in theirs.image_encoder.blocks]
        assert tuple(i for i, span in enumerate(spans) if span == 0) == architecture.global_blocks
    assert SMALL.grid == 8
