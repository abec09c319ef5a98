"""Views: masks stay on their things whatever is cut and scaled, and a view is a function of seed, image and epoch."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from data_engine.masks import rle
from data_engine.train.data.labelled import LabelledImage
from data_engine.train.supervised.settings import DataSettings
from data_engine.train.supervised.views import ViewMaker

FRAME = 64


def maker(seed: int = 0, mask_side: int = FRAME, **settings: object) -> ViewMaker:
    return ViewMaker(DataSettings(**settings), 8, seed, FRAME, mask_side)


def with_a_red_square(height: int, width: int, top: int, left: int, side: int) -> LabelledImage:
    mask = np.zeros((height, width), bool)
    mask[top : top + side, left : left + side] = True
    pixels = np.full((height, width, 3), 40, np.uint8)
    pixels[mask] = (250, 10, 10)
    return LabelledImage("square", pixels, [rle.encode(mask)])


def grown(mask: np.ndarray) -> np.ndarray:
    """With the pixels that touch it."""
    return torch.nn.functional.max_pool2d(torch.from_numpy(mask)[None].float(), 3, 1, 1)[0].numpy() > 0


@given(
    st.integers(20, 150), st.integers(20, 150), st.floats(0, 1), st.floats(0, 1), st.integers(0, 50), st.integers(0, 9)
)
def test_a_mask_stays_on_what_it_outlines(height, width, down, across, epoch, seed):
    side = 12
    image = with_a_red_square(height, width, int(down * (height - side)), int(across * (width - side)), side)
    example = maker(seed, jitter=(0.8, 2.0)).view(image, epoch)
    assert example is not None
    red = (example.pixels[0] > 145).numpy()
    mask = example.targets[0].numpy()
    assert not (red & ~grown(mask)).any()  # a pixel that is covered by half may be on either side
    assert not (mask & ~grown(red)).any()
    assert not mask[example.size[0] :].any()
    assert not mask[:, example.size[1] :].any()
    assert not example.pixels[:, example.size[0] :].any()


def test_the_same_seed_image_and_epoch_give_the_same_view():
    image = with_a_red_square(90, 70, 20, 30, 25)
    first, again, later = (maker(jitter=(0.5, 2.0)).view(image, epoch) for epoch in (3, 3, 4))
    assert torch.equal(first.pixels, again.pixels)
    assert torch.equal(first.targets, again.targets)
    assert first.seed == again.seed
    assert not torch.equal(first.pixels, later.pixels)


def test_few_views_come_again_with_other_prompts():
    image = with_a_red_square(90, 70, 20, 30, 25)
    examples = [maker(jitter=(0.5, 2.0), views_per_image=3).view(image, epoch) for epoch in range(20)]
    assert len({example.pixels.numpy().tobytes() for example in examples}) == 3
    assert len({example.seed for example in examples}) == 20


def test_a_smaller_loss_sees_smaller_masks():
    example = maker(mask_side=16, jitter=None, flip=False).view(with_a_red_square(64, 64, 8, 16, 20), 0)
    assert example.targets.shape == (1, 16, 16)
    assert example.targets.sum() == 25  # 20 pixels are 5 cells
    assert example.targets[0, 2:7, 4:9].all()


def test_what_cannot_be_prompted_gives_no_view():
    assert maker().view(LabelledImage("none", np.zeros((40, 40, 3), np.uint8), []), 0) is None
    tiny = with_a_red_square(640, 640, 100, 100, 3)  # less than a pixel of the frame
    assert maker(jitter=None).view(tiny, 0) is None
