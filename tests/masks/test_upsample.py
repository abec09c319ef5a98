"""The composed interpolation against the reference's two steps (256 -> 1024, cut off the padding -> image size)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from data_engine.masks import gpu_upsample, rle, upsample
from data_engine.masks.grid import CropWindow
from data_engine.masks.upsample import Upsampler
from data_engine.sam.resize import resized_shape

CPU = torch.device("cpu")
FRAME, LOGITS = 128, 32
SIDES = st.integers(1, 200)


def two_steps(logits: Tensor, frame: int, input_shape: tuple[int, int], shape: tuple[int, int]) -> Tensor:
    """NxLxL -> NxHxW as `Sam.postprocess_masks` does it."""
    middle = F.interpolate(logits[:, None], (frame, frame), mode="bilinear", align_corners=False)
    middle = middle[..., : input_shape[0], : input_shape[1]]
    return F.interpolate(middle, shape, mode="bilinear", align_corners=False)[:, 0]


def input_shape_of(shape: tuple[int, int], frame: int) -> tuple[int, int]:
    height, width = (max(side, 1) for side in resized_shape(*shape, frame))
    return height, width


def random_logits(count: int, side: int, seed: int, level: float = -2.0) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    coarse = torch.randn(count, 1, 6, 6, generator=random) * 6 + level
    smooth = F.interpolate(coarse, (side, side), mode="bicubic")[:, 0]
    return smooth + torch.randn(count, side, side, generator=random)


def whole(upsampler: Upsampler, cells: Tensor) -> Tensor:
    """All pixels of one mask's logits through the composed matrices."""
    return upsampler._rows @ cells @ upsampler._columns.mT


def check(shape: tuple[int, int], frame: int, side: int, seed: int, threshold: float, offset: float) -> None:
    """Everything that `Upsampler` says about some masks, against the reference's interpolation."""
    input_shape = input_shape_of(shape, frame)
    logits = random_logits(4, side, seed)
    expected = two_steps(logits, frame, input_shape, shape)
    upsampler = Upsampler(side, frame, input_shape, shape, CPU)
    for cells, pixels in zip(logits, expected, strict=True):
        torch.testing.assert_close(whole(upsampler, cells), pixels, rtol=0, atol=2e-5)

    # Thresholded masks are compared where no logit lies within rounding of a threshold.
    levels = torch.tensor([threshold - offset, threshold, threshold + offset])
    clear = ((expected[:, None] - levels[:, None, None]).abs() > 2e-5).flatten(1).all(1)
    height, width = shape[0] + 7, shape[1] + 5
    window = CropWindow(3, 2, 3 + shape[1], 2 + shape[0], 1)
    measured = upsampler.measure(logits, threshold, offset)
    for i in torch.nonzero(clear)[:, 0].tolist():
        low, mask, high = (expected[i] > level for level in levels)
        assert measured.area[i] == mask.sum()
        np.testing.assert_equal(measured.stability[i], (high.sum() / low.sum()).numpy())
        rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
        box = [columns.min(), rows.min(), columns.max(), rows.max()] if mask.any() else [0, 0, 0, 0]
        assert measured.boxes[i].tolist() == [int(side) for side in box]
        region = measured.regions[i]
        (runs,) = upsampler.runs(
            [logits[i, region.cells_y, region.cells_x]], [region], threshold, window, height, width
        )
        image = np.pad(mask.numpy(), ((2, 5), (3, 2)))
        np.testing.assert_array_equal(rle.decode(runs), image)


@given(SIDES, SIDES, st.integers(0, 10**6), st.sampled_from([0.0, -1.0, 0.5]), st.sampled_from([0.0, 0.5, 1.0, 3.0]))
@settings(max_examples=150, deadline=None)
def test_any_shape(height: int, width: int, seed: int, threshold: float, offset: float) -> None:
    check((height, width), FRAME, LOGITS, seed, threshold, offset)


@pytest.mark.parametrize("shape", [(1, 1), (1, 2000), (2000, 1), (3, 900), (2, 2), (128, 128), (129, 127), (31, 2500)])
def test_extreme_shapes(shape: tuple[int, int]) -> None:
    for seed in range(5):
        check(shape, FRAME, LOGITS, seed, 0.0, 1.0)


@pytest.mark.parametrize("shape", [(480, 640), (1500, 1000), (700, 701)])
def test_the_released_models_sizes(shape: tuple[int, int]) -> None:
    check(shape, 1024, 256, 1, 0.0, 1.0)


def test_one_step_interpolation_would_be_wrong() -> None:
    """What `check` can tell apart: interpolating 32 -> image at once moves the borders of masks."""
    shape = (150, 200)
    logits = random_logits(4, LOGITS, 0)
    expected = two_steps(logits, FRAME, input_shape_of(shape, FRAME), shape)
    one_step = F.interpolate(logits[:, None, :24], shape, mode="bilinear", align_corners=False)[:, 0]
    assert ((one_step > 0) != (expected > 0)).sum() > 100


@pytest.mark.parametrize("band_bytes", [1, 5000])
def test_bands_change_nothing(monkeypatch: pytest.MonkeyPatch, band_bytes: int) -> None:
    monkeypatch.setitem(upsample._BAND_BYTES, "cpu", band_bytes)
    for shape in ((150, 200), (200, 90), (1, 300)):
        check(shape, FRAME, LOGITS, 2, 0.0, 1.0)


def test_nothing_active() -> None:
    """Logits all below the lowest threshold, or above it only in the padding: no pixels, an undefined stability."""
    upsampler = Upsampler(LOGITS, FRAME, (64, 128), (50, 100), CPU)
    logits = torch.full((2, LOGITS, LOGITS), -5.0)
    logits[1, 20:] = 5.0  # rows 17 and on only exist in the padding
    measured = upsampler.measure(logits, 0.0, 1.0)
    assert measured.area.tolist() == [0, 0]
    assert measured.boxes.tolist() == [[0, 0, 0, 0]] * 2
    assert np.isnan(measured.stability).all()
    region = measured.regions[1]
    (runs,) = upsampler.runs(
        [logits[1, region.cells_y, region.cells_x]], [region], 0.0, CropWindow(0, 0, 100, 50, 0), 50, 100
    )
    assert runs.area() == 0


def test_no_masks() -> None:
    measured = Upsampler(LOGITS, FRAME, (64, 128), (50, 100), CPU).measure(torch.zeros(0, LOGITS, LOGITS), 0.0, 1.0)
    assert measured.boxes.shape == (0, 4)
    assert measured.area.shape == measured.stability.shape == (0,)
    assert measured.regions == []


def test_only_the_active_part_is_computed() -> None:
    """The region of a small mask is small, and holds every pixel that could exceed the lowest threshold."""
    upsampler = Upsampler(LOGITS, FRAME, (FRAME, FRAME), (1000, 1000), CPU)
    logits = torch.full((1, LOGITS, LOGITS), -9.0)
    logits[0, 10:12, 20:23] = 9.0
    (region,) = upsampler.measure(logits, 0.0, 1.0).regions
    assert (region.x1 - region.x0) * region.height < 0.05 * 1000 * 1000
    outside = two_steps(logits, FRAME, (FRAME, FRAME), (1000, 1000))[0] > -1
    outside[region.y0 : region.y1, region.x0 : region.x1] = False
    assert not outside.any()


class NoKernels:
    """What stands for the GPU's upsampler where its kernels cannot be started."""

    error: Exception

    def __init__(self, *sizes: object) -> None:
        pass

    def measure(self, *arguments: object) -> None:
        raise self.error


def triton_works(error: Exception, monkeypatch: pytest.MonkeyPatch) -> bool:
    monkeypatch.setattr(upsample, "find_spec", lambda name: "somewhere")
    monkeypatch.setattr(gpu_upsample, "GpuUpsampler", NoKernels)
    monkeypatch.setattr(NoKernels, "error", error, raising=False)
    return upsample._triton_works.__wrapped__(torch.device("meta"))


def test_triton_without_a_compiler_is_done_without(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Slim images have torch's Triton and no compiler: every image would fail."""
    assert not triton_works(RuntimeError("Failed to find C compiler. Please specify via CC"), monkeypatch)
    assert "gcc" in caplog.text
    with pytest.raises(RuntimeError):
        triton_works(RuntimeError("Triton Error [CUDA]: out of memory"), monkeypatch)
