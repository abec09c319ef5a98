"""The Triton kernels against the CPU's upsampler: small in Triton's interpreter, at real size where there is a GPU.

The interpreter is chosen by the environment when Triton is first imported, and for the whole process. So what needs it
(the functions that say so) runs in a child process, and no other test sees it.
"""

from __future__ import annotations

import os
import re
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from data_engine.masks import gpu_upsample, rle
from data_engine.masks.gpu_upsample import GpuUpsampler
from data_engine.masks.grid import CropWindow
from data_engine.masks.upsample import Measured, Upsampler
from data_engine.sam.resize import resized_shape

CPU = torch.device("cpu")
SIDE, FRAME = 64, 256
ROUNDING = 1e-5  # in logits of about 10: what two orders of summing a few float32 products can differ by
SIDES = st.one_of(st.integers(1, 20), st.integers(1, 150))
Run = Callable[..., Any]

TRITON = tuple(map(int, version("triton").split(".")[:2])) if find_spec("triton") else (0, 0)
needs_triton = pytest.mark.skipif(not any(TRITON), reason="Triton is not installed here")
needs_interpreter = pytest.mark.skipif(TRITON < (3, 7), reason="an interpreter that goes with numpy 2.4 is in 3.7")


@pytest.fixture(scope="module")
def interpreted() -> Iterator[Run]:
    """Calls a function of this file in a process whose Triton interprets kernels on the CPU."""
    with ProcessPoolExecutor(1, get_context("spawn"), use_interpreter) as pool:
        yield lambda function, *arguments: pool.submit(function, *arguments).result()


def use_interpreter() -> None:
    assert "triton" not in sys.modules, "importing the package imports Triton"
    os.environ["TRITON_INTERPRET"] = "1"


def smooth(count: int, side: int, seed: int, level: float = -2.0) -> Tensor:
    """Logits like a model's: blobs."""
    random = torch.Generator().manual_seed(seed)
    coarse = torch.randn(count, 1, 6, 6, generator=random) * 6 + level
    fine = F.interpolate(coarse, (side, side), mode="bicubic")[:, 0] if count else coarse.new_zeros(0, side, side)
    return fine + 0.3 * torch.randn(count, side, side, generator=random)


def input_shape_of(shape: tuple[int, int], frame: int) -> tuple[int, int]:
    height, width = (max(side, 1) for side in resized_shape(*shape, frame))
    return height, width


class Pair:
    """Both upsamplers of one crop, placed off the corner of a larger image."""

    def __init__(
        self, shape: tuple[int, int], side: int = SIDE, frame: int = FRAME, device: torch.device = CPU
    ) -> None:
        sizes = side, frame, input_shape_of(shape, frame), shape
        self.shape, self.device = shape, device
        self.cpu, self.gpu = Upsampler(*sizes, CPU), GpuUpsampler(*sizes, device)
        self.window = CropWindow(3, 2, 3 + shape[1], 2 + shape[0], 1)
        self.image = shape[0] + 7, shape[1] + 5

    def pixels(self, logits: Tensor) -> Tensor:
        return self.cpu._rows @ logits @ self.cpu._columns.mT

    def runs(
        self, upsampler: Upsampler | GpuUpsampler, logits: Tensor, measured: Measured, threshold: float
    ) -> list[str]:
        """As the generator asks for them: what was kept of all masks, after the logits are gone."""
        logits, everyone = logits.clone(), range(len(logits))
        cells = upsampler.keep(logits, measured.regions, everyone)
        logits.fill_(99.0)
        regions = [measured.box_region(i) for i in everyone]
        runs = upsampler.runs(cells, regions, threshold, self.window, *self.image)
        return [rle.counts_string(mask) for mask in runs]

    def agree(self, logits: Tensor, threshold: float, offset: float) -> Measured:
        """What both say, after a comparison of all of it. No pixel may lie within rounding of a level."""
        expected = self.cpu.measure(logits, threshold, offset)
        measured = self.gpu.measure(logits.to(self.device), threshold, offset)
        for name in ("stability", "area", "boxes"):
            mine, theirs = getattr(measured, name), getattr(expected, name)
            np.testing.assert_array_equal(mine, theirs)
            assert (mine.dtype, mine.shape) == (theirs.dtype, theirs.shape)
        runs = self.runs(self.cpu, logits, expected, threshold)
        assert self.runs(self.gpu, logits.to(self.device), measured, threshold) == runs
        # Where downsampling leaves logits out, the GPU's regions can be smaller. They must serve the CPU as well.
        assert self.runs(self.cpu, logits, measured, threshold) == runs
        for mine, theirs in zip(measured.regions, expected.regions, strict=True):
            assert mine.height * (mine.x1 - mine.x0) <= theirs.height * (theirs.x1 - theirs.x0)
        return expected


def clear_levels(pixels: Tensor) -> tuple[float, float]:
    """A threshold and an offset for which no pixel lies within rounding of a level, so that all masks must agree."""
    values = np.sort(pixels.numpy(), axis=None).astype(np.float64)
    if not len(values):
        return 0.0, 1.0
    random = np.random.default_rng(0)
    threshold, offset = random.uniform(-0.3, 0.3, 4000), random.uniform(0.5, 1.5, 4000)
    levels = np.stack([threshold - offset, threshold, threshold + offset])
    above = np.searchsorted(values, levels)
    neighbours = values[np.stack([above, above - 1]).clip(0, len(values) - 1)]
    margin = np.abs(neighbours - levels).min((0, 1))
    best = margin.argmax()
    assert margin[best] > ROUNDING
    return float(threshold[best]), float(offset[best])


def agree_on_smooth_masks(shape: tuple[int, int], count: int, seed: int) -> None:
    """In the interpreter."""
    pair, logits = Pair(shape), smooth(count, SIDE, seed)
    pair.agree(logits, *clear_levels(pair.pixels(logits)))


@needs_interpreter
@pytest.mark.parametrize("count", [0, 1, 5])
@pytest.mark.parametrize("shape", [(50, 70), (130, 97)])
def test_the_same_as_on_the_cpu(interpreted: Run, shape: tuple[int, int], count: int) -> None:
    interpreted(agree_on_smooth_masks, shape, count, 1)


@needs_interpreter
@pytest.mark.parametrize("shape", [(300, 200), (30, 700), (7, 5), (64, 1), (1, 90), (2, 1), (1, 1)])
def test_sizes_at_the_ends(interpreted: Run, shape: tuple[int, int]) -> None:
    """Much larger and much smaller than the logits, and one pixel wide or high."""
    interpreted(agree_on_smooth_masks, shape, 3, 2)


@needs_interpreter
@given(SIDES, SIDES, st.integers(0, 3), st.integers(0, 10**6))
@settings(max_examples=12)
def test_any_shape(interpreted: Run, height: int, width: int, count: int, seed: int) -> None:
    interpreted(agree_on_smooth_masks, (height, width), count, seed)


def agree_on_plain_masks() -> None:
    """In the interpreter: nothing, everything, only in the padding, and each border alone, in one chunk."""
    pair = Pair((60, 90))  # of the 64 rows of logits, the last 21 are padding
    logits = torch.full((7, SIDE, SIDE), -5.0)
    logits[1] = 5.0
    logits[2, 50:] = 5.0
    logits[3, :9] = logits[4, 38:43] = 5.0
    logits[5, :, :7] = logits[6, :, 60:] = 5.0
    measured = pair.agree(logits, 0.1, 1.0)
    everything = 60 * 90
    assert measured.area[:3].tolist() == [0, everything, 0]
    assert (measured.area[3:] > 0).all()
    assert measured.boxes[:, :2].min(0).tolist() == [0, 0]
    assert measured.boxes[3:, 2:].max(0).tolist() == [89, 59]
    (alone,) = pair.gpu.runs([logits[1]], measured.regions[1:2], 0.1, CropWindow(0, 0, 90, 60, 0), 60, 90)
    assert alone.counts.tolist() == [0, everything]  # the last run ends with the image
    assert pair.gpu.runs([logits[0]], [measured.box_region(0)], 0.1, pair.window, *pair.image)[0].area() == 0


@needs_interpreter
def test_empty_and_full_masks_and_borders(interpreted: Run) -> None:
    interpreted(agree_on_plain_masks)


def agree_on_one_pixel(shape: tuple[int, int], row: int, column: int) -> None:
    """In the interpreter: a mask of exactly one pixel, beside an empty mask."""
    pair = Pair(shape)
    y, x = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    peak = -0.5 * ((y - row) ** 2 + (x - column) ** 2).sqrt()
    first, second = pair.pixels(peak).flatten().topk(2).values.tolist()
    logits = torch.stack([peak, torch.full_like(peak, -90.0)])
    measured = pair.agree(logits, (first + second) / 2, (first - second) / 4)
    assert measured.area.tolist() == [1, 0]


@needs_interpreter
@pytest.mark.parametrize(("shape", "row", "column"), [((13, 9), 0, 0), ((90, 70), 40, 21), ((9, 13), 43, 63)])
def test_a_mask_of_one_pixel(interpreted: Run, shape: tuple[int, int], row: int, column: int) -> None:
    """Also at (0, 0), where its box is that of an empty mask."""
    interpreted(agree_on_one_pixel, shape, row, column)


def agree_in_buffers_of(size: int, shape: tuple[int, int], count: int) -> None:
    """In the interpreter."""
    whole = gpu_upsample._BUFFER_BYTES
    gpu_upsample._BUFFER_BYTES = size
    try:
        agree_on_smooth_masks(shape, count, 3)
    finally:
        gpu_upsample._BUFFER_BYTES = whole


@needs_interpreter
@pytest.mark.parametrize(("size", "shape", "count"), [(1, (8, 10), 2), (100, (16, 20), 4), (500, (16, 20), 4)])
def test_the_size_of_the_buffer_changes_nothing(
    interpreted: Run, size: int, shape: tuple[int, int], count: int
) -> None:
    """Columns one by one; masks in several pieces; several masks a piece."""
    interpreted(agree_in_buffers_of, size, shape, count)


@given(
    st.lists(st.tuples(*[st.integers(0, 300)] * 4), max_size=20).map(
        lambda corners: [(min(x, z), min(y, w), max(x, z), max(y, w)) for x, y, z, w in corners]
    ),
    st.integers(1, 10**5),
)
def test_pieces_cover_each_mask_once_and_chunks_stay_small(boxes: list[tuple[int, ...]], limit: int) -> None:
    pieces = gpu_upsample._pieces(np.array(boxes, np.int64).reshape(-1, 4), limit)
    columns = [[] for _ in boxes]
    for mask, x, width, y, rows in pieces.tolist():
        assert (y, rows) == (boxes[mask][1], boxes[mask][3] - boxes[mask][1])
        columns[mask] += [(x, x + width)]
    for of_mask, (x0, y0, x1, y1) in zip(columns, boxes, strict=True):
        if x0 == x1 or y0 == y1:
            assert of_mask == []
            continue
        starts, stops = zip(*of_mask, strict=True)
        assert (starts[0], stops[-1]) == (x0, x1)
        assert starts[1:] == stops[:-1]
    sizes = pieces[:, 2] * (pieces[:, 4] + 2)
    chunks = list(gpu_upsample._chunks(sizes, limit))
    assert np.concatenate([np.zeros(0, int)] + [np.arange(len(sizes))[chunk] for chunk in chunks]).tolist() == list(
        range(len(sizes))
    )
    for chunk in chunks:
        one_column = chunk.stop - chunk.start == 1 and pieces[chunk, 2] == 1
        assert sizes[chunk].sum() <= limit or one_column


def compiled() -> dict[str, str]:
    """Each kernel's assembly for an H100, by Triton's own compiler and assembler: no GPU is needed for that."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from data_engine.masks import gpu_kernels

    types = dict.fromkeys(("height", "width", "first"), "i32") | dict.fromkeys(("low", "threshold", "high"), "fp32")
    types |= dict.fromkeys(("logits", "rows_weights", "columns_weights"), "*fp32") | {"pieces": "*i64", "flat": "*u8"}
    types |= dict.fromkeys(("regions", "rows_first", "columns_first", "facts"), "*i32")
    constants = {"SIDE": 256, "ROW_TAPS": 3, "COLUMN_TAPS": 3}
    constants |= {name: getattr(gpu_kernels, name) for name in ("PARTS", "LINES", "ALONG")}
    assembly = {}
    for kernel in (gpu_kernels.survey, gpu_kernels.write_columns):
        signature = {name: types.get(name, "constexpr") for name in kernel.arg_names}
        source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
        done = triton.compile(source, target=GPUTarget("cuda", 90, 32))
        assert done.asm["cubin"]
        assembly[kernel.__name__] = done.asm["ptx"]
    return assembly


@needs_triton
def test_the_kernels_compile_and_round_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every product is in a fused multiply-add: two kernels that agree on each pixel to the bit."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        assembly = pool.submit(compiled).result()
    pixels_a_lane, products_a_pixel = 8, 3 * 3 + 3
    for name in ("survey", "write_columns"):
        operations = Counter(re.findall(r"\b(fma|mul|add|sub)(?:\.rn)?\.f32", assembly[name]))
        assert operations == {"fma": pixels_a_lane * products_a_pixel}


def copies_to_the_host(calls: list[tuple[str, int]]) -> pytest.MonkeyPatch:
    """Notes what the package brings to the host, with its number of elements, until it is undone."""
    patch = pytest.MonkeyPatch()

    def note(name: str, plain: Callable[..., Any]) -> Callable[..., Any]:
        def noted(tensor: Tensor, *args: Any, **named: Any) -> Any:
            if sys._getframe(1).f_globals["__name__"].startswith("data_engine"):
                calls.append((name, tensor.numel()))
            return plain(tensor, *args, **named)

        return noted

    for name in ("cpu", "item", "tolist", "__bool__", "__int__", "__float__", "__index__", "__array__"):
        patch.setattr(Tensor, name, note(name, getattr(Tensor, name)))
    return patch


def copies() -> tuple[list[tuple[str, int]], list[tuple[str, int]]]:
    """In the interpreter: what `measure` and `runs` copy for 4 masks in more than one chunk."""
    pair, logits = Pair((200, 150)), smooth(4, SIDE, 5)
    gpu_upsample._BUFFER_BYTES = 30_000
    measuring: list[tuple[str, int]] = []
    patch = copies_to_the_host(measuring)
    measured = pair.gpu.measure(logits, 0.0, 1.0)
    patch.undo()
    running: list[tuple[str, int]] = []
    patch = copies_to_the_host(running)
    pair.runs(pair.gpu, logits, measured, 0.0)
    patch.undo()
    assert measured.area.sum() > 30_000
    return measuring, running


@needs_interpreter
def test_one_small_copy_to_the_host(interpreted: Run) -> None:
    measuring, running = interpreted(copies)
    assert measuring == [("cpu", 4 * 11)]
    ((how, elements),) = running
    assert how == "cpu"
    assert elements < 4 * 150 * 8  # a few run ends a column, not pixels


@needs_triton
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_at_real_size() -> None:
    pair, logits = Pair((1500, 2250), 256, 1024, torch.device("cuda", 0)), smooth(5, 256, 1)
    on_device = logits.to(pair.device)
    pair.gpu.measure(on_device, 0.0, 1.0)  # compiles
    with warnings.catch_warnings(record=True) as waits:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        measured = pair.gpu.measure(on_device, 0.0, 1.0)
        torch.cuda.set_sync_debug_mode("default")
    assert len([wait for wait in waits if "called a synchronizing" in str(wait.message)]) == 1
    check_on_device(pair, logits, measured)


def check_on_device(pair: Pair, logits: Tensor, measured: Measured) -> None:
    """Measured at 0.0 and 1.0. Among millions of pixels some lie within rounding of a level: those may differ."""
    expected, pixels = pair.cpu.measure(logits, 0.0, 1.0), pair.pixels(logits)
    near = (pixels.abs() < 10 * ROUNDING).numpy()
    assert (np.abs(measured.area - expected.area) <= near.sum((1, 2))).all()
    np.testing.assert_allclose(measured.stability, expected.stability, atol=1e-4)
    assert measured.regions == expected.regions
    for i, counts in enumerate(pair.runs(pair.gpu, logits.to(pair.device), measured, 0.0)):
        runs = rle.from_counts_string(counts, *pair.image)
        inside = rle.decode(runs)[2:-5, 3:-2]
        assert not ((inside != (pixels[i] > 0).numpy()) & ~near[i]).any()
        # Both kernels must see the same pixels, to the bit.
        assert runs.area() == inside.sum() == measured.area[i]
        assert list(rle.box(runs)) == (measured.boxes[i] + [3, 2, 3, 2]).tolist()
