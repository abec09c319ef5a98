"""The GPU's kernels of the decoder, in Triton's interpreter and through its compiler; on a GPU where there is one."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from data_engine.sam import fused_decoder
from data_engine.sam.fused_decoder import Fused
from data_engine.sam.image_attention import Whole
from data_engine.sam.layers import ChannelLayerNorm
from data_engine.sam.model import Sam, SamArchitecture

Run = Callable[..., Any]

TRITON = tuple(map(int, version("triton").split(".")[:2])) if find_spec("triton") else (0, 0)
needs_triton = pytest.mark.skipif(not any(TRITON), reason="Triton is not installed here")
needs_interpreter = pytest.mark.skipif(TRITON < (3, 7), reason="an interpreter that goes with numpy 2.4 is in 3.7")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.fixture(scope="module")
def interpreted() -> Iterator[Run]:
    """Calls a function of this file in a process whose Triton interprets kernels on the CPU."""
    with ProcessPoolExecutor(1, get_context("spawn"), use_interpreter) as pool:
        yield lambda function, *arguments: pool.submit(function, *arguments).result()


@pytest.fixture
def tf32_as_it_was() -> Iterator[None]:
    before = torch.backends.cuda.matmul.allow_tf32
    yield
    torch.backends.cuda.matmul.allow_tf32 = before


def use_interpreter() -> None:
    assert "triton" not in sys.modules, "importing the package imports Triton"
    os.environ["TRITON_INTERPRET"] = "1"


@torch.inference_mode()
def largest_differences(
    prompts: int, cells: int, channels: int, heads: int, tokens: int, shared: bool, device: str = "cpu"
) -> dict[str, float]:
    """Between the kernels and whole operations, and how far the image is from what it was where it may not change."""
    random = torch.Generator().manual_seed(cells + tokens)
    rows = heads * tokens
    of_image = (cells, channels) if shared else (prompts, cells, channels)
    image, positions, to_gather, to_scatter, offset, added = (
        torch.randn(*shape, generator=random).to(device)
        for shape in (
            of_image,
            (cells, channels),
            (prompts, rows, channels),
            (prompts, rows, channels),
            (prompts, rows, 1),
            (prompts, rows, channels),
        )
    )
    to_gather, to_scatter = 0.3 * to_gather, 0.1 * to_scatter
    norm = nn.LayerNorm(channels, eps=1e-5, device=device)
    nn.init.normal_(norm.weight, generator=None)
    nn.init.normal_(norm.bias)
    fused, whole, given = Fused(image, positions), Whole(image, positions, few=False), image.clone()
    one = fused.gather(to_gather) - whole.gather(to_gather)
    expected = whole.scatter(to_scatter, offset, added, heads, norm, overwrite=False)
    two = fused.scatter(to_scatter, offset, added, heads, norm, overwrite=False) - expected
    kept = image - given
    three = fused.scatter(to_scatter, offset, added, heads, norm, overwrite=True) - expected
    named = {"gather": one, "scatter": two, "the image": kept, "scatter over it": three}
    return {name: float(difference.abs().max()) for name, difference in named.items()}


@torch.inference_mode()
def difference_of_masks(prompts: int, grid: int, channels: int, count: int, device: str = "cpu") -> float:
    """Between what the kernel draws and what the decoder does without it."""
    torch.manual_seed(grid)
    sizes = {"embed_dim": 16, "depth": 1, "num_heads": 1, "mlp_dim": 16, "global_blocks": ()}
    decoder = Sam(SamArchitecture(image_size=16 * grid, dim=channels, **sizes)).mask_decoder.to(device)
    for parameter in decoder.output_upscaling.parameters():
        nn.init.normal_(parameter, std=0.3)
    image = torch.randn(prompts, grid * grid, channels).to(device)
    masks = torch.randn(prompts, count, channels // 8).to(device)
    first, norm, _, second, _ = decoder.output_upscaling
    assert isinstance(norm, ChannelLayerNorm)
    drawn = fused_decoder.draw(image, masks, first, norm, second)  # type: ignore[arg-type]
    assert drawn.shape == (prompts, count, 4 * grid, 4 * grid)
    expected = decoder.mask_logits(image, masks)
    return float((drawn - expected).abs().max() / expected.abs().max())


SIZES = [
    pytest.param((2, 256, 128, 8, 7, False), id="starter, one image a prompt"),
    pytest.param((2, 256, 128, 8, 7, True), id="starter, one image for all"),
    pytest.param((1, 1000, 256, 8, 7, False), id="released models, cells that fill no tile"),
    pytest.param((2, 70, 128, 4, 8, False), id="no row to add"),
    pytest.param((2, 64, 128, 8, 1, False), id="few rows"),
    pytest.param((2, 64, 128, 8, 11, False), id="more rows than the kernels take"),
]


@needs_interpreter
@pytest.mark.parametrize("sizes", SIZES)
def test_they_give_what_whole_operations_give(interpreted: Run, sizes: tuple) -> None:
    differences = interpreted(largest_differences, *sizes)
    assert differences.pop("the image") == 0
    assert max(differences.values()) < 2e-5, differences


@needs_gpu
@pytest.mark.usefixtures("tf32_as_it_was")
@pytest.mark.parametrize("sizes", SIZES)
def test_they_do_so_on_a_gpu(sizes: tuple) -> None:
    torch.backends.cuda.matmul.allow_tf32 = False  # of what they are compared with
    differences = largest_differences(*sizes, "cuda")
    assert differences.pop("the image") == 0
    assert max(differences.values()) < 0.05, differences
    torch.backends.cuda.matmul.allow_tf32 = True
    assert fused_decoder.suits(torch.zeros(64, sizes[2], device="cuda"))


MASKS = [
    pytest.param((2, 16, 128, 3), id="starter"),
    pytest.param((1, 16, 256, 1), id="one mask"),
    pytest.param((3, 5, 128, 2), id="cells that fill no tile"),
]


@needs_interpreter
@pytest.mark.parametrize("sizes", MASKS)
def test_masks_are_drawn_as_without_them(interpreted: Run, sizes: tuple) -> None:
    assert interpreted(difference_of_masks, *sizes) < 1e-5


@needs_gpu
@pytest.mark.usefixtures("tf32_as_it_was")
@pytest.mark.parametrize("sizes", MASKS)
def test_masks_are_drawn_so_on_a_gpu(sizes: tuple) -> None:
    torch.backends.cuda.matmul.allow_tf32 = False
    assert difference_of_masks(*sizes, "cuda") < 0.02


def compiled() -> dict[str, tuple[int, int]]:
    """For Hopper and for Ampere: bytes of shared memory, and of registers that were spilt."""
    import re
    import subprocess
    import tempfile

    import triton
    from triton.backends.compiler import GPUTarget
    from triton.backends.nvidia.compiler import get_ptxas
    from triton.compiler import ASTSource

    from data_engine.sam import decoder_kernels

    found = {}
    shapes = {"CHANNELS": 256, "ROWS": 64, "TOKENS": 8, "SOME": fused_decoder._SOME, "PRECISION": "tf32"}
    types = {"cells": "i32", "part": "i32", "grid": "i32", "count": "i32", "image_stride": "i64", "eps": "fp32"}
    for capability, launches in ((90, fused_decoder._LARGE), (80, fused_decoder._SMALL)):
        for name, launch in {**launches, "draw": fused_decoder._DRAW}.items():
            kernel = getattr(decoder_kernels, name)
            constants = {key: value for key, value in {**shapes, **launch}.items() if key in kernel.arg_names}
            signature = {key: "constexpr" if key in constants else types.get(key, "*fp32") for key in kernel.arg_names}
            unaligned = {*constants, "eps", "count"}
            aligned = [i for i, key in enumerate(kernel.arg_names) if key not in unaligned]
            source = ASTSource(kernel, signature, constants, {(i,): [["tt.divisibility", 16]] for i in aligned})
            options = {key: launch[key] for key in ("num_warps", "num_stages")}
            done = triton.compile(source, GPUTarget("cuda", capability, 32), options)
            with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
                file.write(done.asm["ptx"])
                file.flush()
                suffix = "a" if capability >= 90 else ""
                command = [
                    get_ptxas(capability).path,
                    "-v",
                    f"-arch=sm_{capability}{suffix}",
                    file.name,
                    "-o",
                    os.devnull,
                ]
                said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
            spilt = sum(map(int, re.findall(r"(\d+) bytes spill stores", said)))
            found[f"{name} {capability}"] = (done.metadata.shared, spilt)
    return found


@needs_triton
def test_the_kernels_compile_and_stay_in_registers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        found = pool.submit(compiled).result()
    assert {name: spilt for name, (_, spilt) in found.items()} == dict.fromkeys(found, 0)
    assert max(shared for name, (shared, _) in found.items() if name.endswith("90")) <= 227 * 1024
    assert max(shared for name, (shared, _) in found.items() if name.endswith("80")) <= 99 * 1024


@pytest.mark.parametrize(
    ("change", "suits"),
    [
        ({}, True),
        ({"device": torch.device("cpu")}, False),
        ({"dtype": torch.float64}, False),
        ({"shape": (9, 96)}, False),
    ],
)
def test_which_images_they_suit(monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], suits: bool) -> None:
    monkeypatch.setattr(fused_decoder, "_work", lambda *_: True)
    image: Any = SimpleNamespace(
        **({"device": torch.device("cuda"), "dtype": torch.float32, "shape": (9, 256)} | change)
    )
    torch.backends.cuda.matmul.allow_tf32 = True
    assert fused_decoder.suits(image) == suits
    torch.backends.cuda.matmul.allow_tf32 = False  # precision: reference
    assert not fused_decoder.suits(image)


@pytest.mark.usefixtures("tf32_as_it_was")
def test_autocast_goes_without_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Inside of it projections come in bfloat16: beside an image in float32 no kernel would compile."""
    monkeypatch.setattr(fused_decoder, "_work", lambda *_: True)
    image: Any = SimpleNamespace(device=torch.device("cuda"), dtype=torch.float32, shape=(9, 256))
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.set_autocast_enabled("cuda", True)
    try:
        assert not fused_decoder.suits(image)
    finally:
        torch.set_autocast_enabled("cuda", False)
    assert fused_decoder.suits(image)


@needs_gpu
@pytest.mark.usefixtures("tf32_as_it_was")
@torch.inference_mode()
def test_a_decoder_answers_inside_of_autocast() -> None:
    torch.backends.cuda.matmul.allow_tf32 = True
    sizes = {"embed_dim": 16, "depth": 1, "num_heads": 1, "mlp_dim": 16, "global_blocks": ()}
    decoder = Sam(SamArchitecture(image_size=256, dim=128, **sizes)).mask_decoder.to("cuda")
    image, positions, tokens = (torch.randn(*shape, device="cuda") for shape in ((256, 128), (256, 128), (3, 2, 128)))

    def answer() -> torch.Tensor:
        decoded = decoder.read(image, positions, tokens)
        return decoder.mask_logits(decoded.image, decoder.mask_weights(decoded)).float()

    plain = answer()
    with torch.autocast("cuda", torch.bfloat16):
        inside = answer()
    assert (inside - plain).abs().max() < 0.1 * plain.abs().max()
