"""`data-engine models`: what is listed, shown and written."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict

import pytest
import torch
from parity.small_sam import SMALL
from typer.testing import CliRunner

from data_engine.cli import app, main
from data_engine.sam.checkpoints import CACHE_VARIABLE, read_checkpoint, registry
from data_engine.sam.model import Sam


@pytest.fixture(autouse=True)
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def mine(tmp_path):
    torch.manual_seed(0)
    path = tmp_path / "mine.pth"
    torch.save({key: torch.randn(tensor.shape) for key, tensor in Sam(SMALL).state_dict().items()}, path)
    return path


def run(*arguments: object, code: int = 0) -> str:
    done = CliRunner().invoke(app, ["models", *map(str, arguments)], terminal_width=100, env={"COLUMNS": "100"})
    assert done.exit_code == code, done.output
    return done.output


def test_the_list_fits_a_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    lines = run("list").splitlines()
    assert len(lines) == 1 + len(registry())  # no name, checksum or description is broken
    assert all(len(line) <= 100 for line in lines)
    for line, known in zip(lines[1:], registry().values(), strict=True):
        assert line.startswith(known.name)
        for text in (known.sha256[:12], f"{known.parameters / 1e6:.1f} M", known.licence, known.description):
            assert text in line
        assert (" yes " in line) == (known.name == "starter")


def test_the_paths(empty_cache):
    shown = run("list", "--paths")
    assert f"sam_vit_b  {empty_cache}/checkpoints/sam_vit_b_01ec64.pth\n" in shown
    assert str(empty_cache) not in run("list")


def test_the_list_as_json(empty_cache):
    listed = {entry["name"]: entry for entry in json.loads(run("list", "--json"))}
    assert listed.keys() == registry().keys()
    assert listed["starter"]["cached"] is True
    vit_h = listed["sam_vit_h"]
    assert vit_h["sha256"] == registry()["sam_vit_h"].sha256
    assert (vit_h["cached"], vit_h["bytes"], vit_h["parameters"]) == (False, 2564550879, 641090608)
    assert vit_h["path"].startswith(str(empty_cache))


def test_a_file_is_shown(mine):
    shown = run("show", mine)
    checkpoint = read_checkpoint(mine)
    for text in (str(mine), checkpoint.sha256, "not known", "segment-anything", "float32", "image_encoder"):
        assert text in shown
    for name, value in asdict(SMALL).items():
        text = ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
        assert [name, text] in [line.split(None, 1) for line in shown.splitlines()]
    told = json.loads(run("show", mine, "--json"))
    assert told["architecture"] == {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(SMALL).items()}
    assert (told["bytes"], told["licence"], told["cached"]) == (mine.stat().st_size, None, True)
    assert told["parameters"].keys() == {"image_encoder", "prompt_encoder", "mask_decoder"}


def test_a_known_model_is_shown_and_not_fetched(empty_cache):
    shown = run("show", "sam_vit_l")
    for text in ("312,342,832", "1,249,524,607 bytes", "Apache-2.0", "(not there yet)", "5, 11, 17, 23"):
        assert text in shown
    assert not empty_cache.exists()


def test_export_there_and_back(mine, tmp_path):
    folder, back = tmp_path / "deep" / "folder", tmp_path / "back.pth"
    shown = run("export", mine, folder, "--layout", "transformers")
    assert read_checkpoint(folder).sha256 in shown
    run("export", folder, back, "--layout", "segment-anything")
    first, second = read_checkpoint(mine).state, read_checkpoint(back).state
    assert all(torch.equal(first[key], second[key]) for key in first)
    shown = run("export", mine, back, "--layout", "segment-anything", "--dtype", "float16", "--overwrite")
    assert "float16" in shown
    assert {tensor.dtype for tensor in read_checkpoint(back).state.values()} == {torch.float16}


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["export", "MINE", "TAKEN.pth", "--layout", "segment-anything"], 2, "--overwrite"),
        (["export", "MINE", "folder", "--layout", "segment-anything"], 2, ".pth"),
        (["export", "MINE", "folder.pth", "--layout", "transformers"], 2, "folder"),
        (["export", "MINE", "x.pth"], 2, "--layout"),
        (["export", "MINE", "x.pth", "--layout", "onnx"], 2, "transformers"),
        (["export", "nowhere.pth", "x.pth", "--layout", "segment-anything"], 1, "nowhere.pth"),
        (["show", "nowhere.pth"], 1, "nowhere.pth"),
    ],
)
def test_errors_are_one_line_with_the_remedy(arguments, code, message, mine, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "TAKEN.pth").write_text("theirs")
    arguments = [str(mine) if argument == "MINE" else argument for argument in arguments]
    monkeypatch.setattr(sys, "argv", ["data-engine", "models", *arguments])
    with pytest.raises(SystemExit) as stopped:
        main()
    shown = capsys.readouterr().err
    assert stopped.value.code == code, shown
    assert message in shown
    assert "Traceback" not in shown
    assert (tmp_path / "TAKEN.pth").read_text() == "theirs"
