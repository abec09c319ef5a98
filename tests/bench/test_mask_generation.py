"""The whole benchmark, on a model of seconds."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bench.small import PHOTOGRAPHS, needs_segment_anything, small_checkpoint
from rich.console import Console

from data_engine.bench import mask_generation
from data_engine.bench.command import command_line, contenders, mask_settings, run
from data_engine.bench.mask_generation import BenchOptions, measure
from data_engine.bench.ours import Ours
from data_engine.bench.photographs import Photograph, read_photographs
from data_engine.errors import SourceError, UsageError
from data_engine.masks.settings import MaskSettings

MASKS = MaskSettings(points_per_side=8, crop_n_layers=1, crop_n_points_downscale_factor=2, min_mask_region_area=60)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    return small_checkpoint(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def benched(checkpoint: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str]:
    """(what the JSON file says, what was printed)"""
    needs_segment_anything()
    pytest.importorskip("cv2")
    file = tmp_path_factory.mktemp("results") / "deeper" / "bench.json"
    printed = io.StringIO()
    options = BenchOptions(
        model=checkpoint, device="cpu", masks=MASKS, repeats=2, against=("segment-anything", "transformers")
    )
    result = run(str(PHOTOGRAPHS), options, limit=2, output=str(file), console=Console(file=printed, width=150))
    told: dict[str, Any] = json.loads(file.read_text())
    assert told == json.loads(json.dumps(result))
    return told, printed.getvalue()


def test_both_find_the_same_masks(benched: tuple[dict[str, Any], str]) -> None:
    """Up to pixels that lie on a threshold to the last bit, which the rounding of sums decides."""
    result, printed = benched
    orderly = result["parity"]["segment-anything"]["in_order"]
    assert orderly["masks"] == orderly["reference_masks"] > 40
    assert orderly["displaced"] == 0
    assert orderly["equal_runs"] >= 0.99 * orderly["masks"]
    assert orderly["most_different_pixels"] <= 3
    assert "in the same order" in printed


def test_every_round_counts_but_the_first(benched: tuple[dict[str, Any], str]) -> None:
    result, _ = benched
    for contender in result["contenders"].values():
        assert len(contender["rounds"]) == 2
        assert len(contender["masks"]) == 2
    ratios = result["times_faster"]["segment-anything"]["rounds"]
    ours, theirs = (result["contenders"][name]["rounds"] for name in ("here", "segment-anything"))
    assert ratios == pytest.approx([b / a for a, b in zip(ours, theirs, strict=True)])


def test_stages_add_up(benched: tuple[dict[str, Any], str]) -> None:
    """Every stage of the two is there, and together they are no more than the whole."""
    result, printed = benched
    for name in ("here", "segment-anything"):
        stages = dict(result["contenders"][name]["stages"])
        total = stages.pop("total")
        assert {"decode", "resize", "encode", "prompt decode", "masks", "upsample + score"} < stages.keys()
        assert {"suppress", "RLE", "regions", "write"} < stages.keys()
        assert all(seconds >= 0 for seconds in stages.values())
        inside = sum(seconds for stage, seconds in stages.items() if stage not in ("decode", "write"))
        assert inside == pytest.approx(total)
        assert stages["other"] < 0.5 * total
    assert "upsample + score" in printed


def test_the_reference_is_as_it_was_afterwards(benched: tuple[dict[str, Any], str]) -> None:
    from data_engine.bench.reference import segment_anything

    generator = segment_anything().generator
    assert generator.mask_to_rle_pytorch.__module__ == "segment_anything.utils.amg"
    assert not hasattr(generator.mask_to_rle_pytorch, "__wrapped__")


def test_the_floor(benched: tuple[dict[str, Any], str]) -> None:
    result, _ = benched
    floor = result["floor"]
    assert floor["stages"].keys() == {"encode", "prompt decode", "masks", "upsample + score"}
    assert floor["share_reached"]["total"] == pytest.approx(
        floor["seconds_an_image"] / result["contenders"]["here"]["seconds_an_image"]
    )
    assert 0 < floor["share_reached"]["total"] < 1.5


def test_what_cannot_take_part_says_why(benched: tuple[dict[str, Any], str]) -> None:
    result, printed = benched
    assert "crops" in result["absent"]["transformers"]
    assert "transformers: not measured: " in printed


def test_it_says_what_it_ran_on(benched: tuple[dict[str, Any], str]) -> None:
    result, _ = benched
    assert result["machine"]["torch"] == torch.__version__
    assert result["machine"]["threads"] == torch.get_num_threads()
    assert result["settings"]["points_per_side"] == 8
    assert [image["id"] for image in result["images"]] == ["astronaut.jpg", "chelsea.jpg"]
    assert "--crop-n-layers 1" in result["command"]
    assert result["date"].endswith("+00:00")


def test_alone(checkpoint: str, capsys: pytest.CaptureFixture[str]) -> None:
    options = BenchOptions(
        model=checkpoint, device="cpu", masks=mask_settings(points_per_side=4), repeats=1, against=()
    )
    result = run(str(PHOTOGRAPHS / "dog.jpg"), options)
    assert result["contenders"].keys() == {"here"}
    assert result["parity"] == {}
    printed = capsys.readouterr()
    assert "end to end" in printed.out
    said = [line.rpartition(": ")[0] for line in printed.err.splitlines()]
    assert said == ["warm-up, dog.jpg, here", "round 1 of 1, dog.jpg, here", "stages, here"]


def test_another_precision_is_matched_not_compared_in_order(checkpoint: str) -> None:
    needs_segment_anything()
    photographs = read_photographs(str(PHOTOGRAPHS / "dog.jpg"), 1)
    options = BenchOptions(
        model=checkpoint, device="cpu", precision="fast", masks=mask_settings(points_per_side=8), repeats=1
    )
    result = measure(photographs, options)
    parity = result["parity"]["segment-anything"]
    assert parity["in_order"] is None
    assert parity["matched"]["recall_of_reference"]["0.9"] > 0.5
    assert result["floor"]["stages"]["encode"]["format"] == "bfloat16"


def test_a_reference_that_fails_is_left_out(checkpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With crops and no mask anywhere, segment-anything raises IndexError (its #614)."""
    needs_segment_anything()
    photographs = read_photographs(str(PHOTOGRAPHS / "dog.jpg"), 1)
    masks = mask_settings(points_per_side=2, crop_n_layers=1, pred_iou_thresh=1e6)
    result = measure(photographs, BenchOptions(model=checkpoint, device="cpu", masks=masks, repeats=1))
    assert result["contenders"].keys() == {"here"}
    assert "IndexError" in result["absent"]["segment-anything"]


def test_no_further_round_after_the_time_is_up(checkpoint: str) -> None:
    photographs = [Photograph("grey", b"", np.full((64, 64, 3), 128, np.uint8))]
    options = BenchOptions(
        model=checkpoint, device="cpu", masks=mask_settings(points_per_side=2), repeats=50, seconds=0.0, against=()
    )
    contender = Ours(mask_generation.SamSegmenter(_sam(checkpoint), torch.device("cpu"), "reference"), options.masks)
    measured = mask_generation._rounds([contender], photographs, options, torch.device("cpu"), {}, lambda _: None)
    assert len(measured["here"].rounds) == 1


def _sam(checkpoint: str) -> Any:
    return mask_generation.load_model(checkpoint, torch.device("cpu")).sam


@pytest.mark.parametrize(
    "wrong",
    [{"precision": "double"}, {"repeats": 0}, {"against": ("sam2",)}],
)
def test_options_that_cannot_be(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        BenchOptions(**wrong)


def test_settings_that_cannot_be() -> None:
    with pytest.raises(UsageError, match="points_per_side"):
        mask_settings(points_per_side=0)


def test_an_input_without_images(tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff no more")
    with pytest.raises(SourceError, match="decoded"):
        read_photographs(str(tmp_path), 1)


def test_names_of_contenders() -> None:
    assert contenders(None) is None
    assert contenders("none") == ()
    assert contenders("segment-anything, transformers") == ("segment-anything", "transformers")


def test_the_command_repeats_the_run() -> None:
    options = BenchOptions(model="vit_b", precision="fast", masks=mask_settings(points_per_side=16), against=())
    assert command_line("my photos", 4, options) == (
        "data-engine bench 'my photos' --model vit_b --precision fast --against none --limit 4 --points-per-side 16"
    )


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu(checkpoint: str) -> None:
    photographs = read_photographs(str(PHOTOGRAPHS / "dog.jpg"), 1)
    result = measure(photographs, BenchOptions(model=checkpoint, device="cuda", masks=mask_settings(points_per_side=8)))
    assert result["machine"]["gpu"]
    assert result["contenders"]["here"]["peak_memory"] > 1e6
    for parity in result["parity"].values():
        assert parity["matched"]["recall_of_reference"]["0.9"] > 0.9
