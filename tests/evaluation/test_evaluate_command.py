"""`data-engine evaluate` as a person meets it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from evaluation.stripes import ids, write_picture
from PIL import Image
from pipeline.tiny_job import save_model

from data_engine.cli import main
from data_engine.evaluation.report import shown_name

KEEP = (
    "--set",
    "masks.points_per_side=2",
    "--set",
    "masks.pred_iou_thresh=-10",
    "--set",
    "masks.stability_score_thresh=0",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """tiny.safetensors, and data/ with two pictures and their id maps."""
    folder = tmp_path_factory.mktemp("evaluate")
    save_model(folder / "tiny.safetensors")
    (folder / "data/segments").mkdir(parents=True)
    for name in ("a", "b"):
        write_picture(folder / f"data/images/{name}.png")
        Image.fromarray(ids()).save(folder / f"data/segments/{name}.png")
    return folder


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "data_engine.cli", "evaluate", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=240, check=False)


def test_a_model_is_named_without_the_secrets_of_its_link():
    assert shown_name("https://store/a/b.pth?X-Amz-Expires=60&X-Amz-Signature=5ec2e7") == "b.pth"
    assert shown_name("run/model.safetensors") == "model.safetensors"


def test_a_table_and_a_file(folder):
    done = run(folder, "data", "--model", "tiny.safetensors", "--clicks", "1,2", "--output", "result.json", *KEEP)
    assert done.returncode == 0, done.stderr
    assert "tiny.safetensors: 2 images, 8 of 8 objects asked for" in done.stdout
    assert "2 clicks: best of three" in done.stdout
    result = json.loads((folder / "result.json").read_text())
    assert len(result["model"]["sha256"]) == 64
    assert result["data"]["ground_truth"] == "data/segments"
    assert set(result["clicks"]) == {"1", "2"}
    scores = result["clicks"]["1"]
    assert 0 <= scores["highest_predicted_iou"]["all"] <= scores["best_of_three"]["all"] <= 1
    assert result["settings"]["automatic"]["points_per_side"] == 2
    assert result["automatic"]["AR@1000"]["large"] is not None
    assert result["versions"]["torch"]


def test_parts_can_be_left_away(folder):
    parts = (
        "--clicks",
        "1",
        "--no-boxes",
        "--no-automatic",
        "--no-baselines",
        "--limit",
        "1",
        "--masks-per-image",
        "2",
    )
    done = run(folder, "data", "--model", "tiny.safetensors", *parts)
    assert done.returncode == 0, done.stderr
    assert "1 images, 2 of 4 objects asked for" in done.stdout
    for word in ("box:", "automatic:", "Flood"):
        assert word not in done.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["nowhere"], 2, "nowhere is not a folder"),
        (["data", "--clicks", "1;2"], 2, "write numbers such as 1,3,5"),
        (["data", "--ground-truth", "none.json"], 1, "none.json cannot be read"),
        (["data", "--output", "no/such/folder.json"], 2, "no folder no/such"),
        (["data", "--output", "https://store/figures.json"], 2, "a web server takes no files"),
        (["memory://none"], 2, "memory://none is not a folder"),
        (["data", "--leave-out", "memory://none"], 2, "--leave-out memory://none: no such folder"),
        (["data", "--set", "masks.point_per_side=3"], 2, "did you mean 'points_per_side'"),
        (["data", "--set", "model.name=tiny.safetensors"], 2, "has no effect here; set masks.… or model.precision"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else None,
)
def test_mistakes_are_one_line(folder, monkeypatch, capsys, arguments, code, text):
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["data-engine", "evaluate", *arguments])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == code
    said = capsys.readouterr().err
    assert text in said.replace("\n", " ")
    assert "Traceback" not in said
