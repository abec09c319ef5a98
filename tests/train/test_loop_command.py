"""`data-engine loop`, and what a Ray job makes of it."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from pipeline.tiny_job import KEEP_ALL, save_model, write_photos
from train.labelled_folders import write_id_maps
from typer.testing import CliRunner

from data_engine.cli import app

ROOT = Path(__file__).parents[2]


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    save_model(tmp_path / "model.safetensors")
    write_photos(tmp_path / "photos", 2)
    write_id_maps(tmp_path / "labelled", 2)
    settings = ["generate.config=reference", "generate.run.device=cpu", "evaluation.clicks=[1]"]
    settings += ["evaluation.automatic=false", *(f"generate.{setting}" for setting in KEEP_ALL)]
    overrides = [word for setting in settings for word in ("--set", setting)]
    folders = [str(tmp_path / "photos"), str(tmp_path / "out"), "--held-out", str(tmp_path / "labelled")]
    return ["loop", *folders, "--model", str(tmp_path / "model.safetensors"), *overrides]


def test_waiting_for_people_is_an_exit_code_of_its_own(arguments: list[str], tmp_path: Path) -> None:
    people = [f"people=idmaps:{tmp_path}/photos@{tmp_path}/corrected", "stages=[assisted]"]
    words = [word for setting in people for word in ("--set", setting)]
    done = CliRunner().invoke(app, [*arguments, "--json", *words])
    assert done.exit_code == 4, done.output
    found = json.loads(done.stdout[done.stdout.index("{\n") :])
    assert [row["round"] for row in found["rows"]] == [0]
    assert "round 1 waits for masks of people" in found["waiting"]
    assert "The same command goes on" in done.stderr
    assert "start: evaluation" in done.stderr


def load_job() -> Any:
    spec = importlib.util.spec_from_file_location("jobs_loop", ROOT / "jobs" / "loop.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("ends", "code"), [(0, 0), (None, 0), (4, 0), (1, 1), (130, 130), ("why", 1)])
def test_waiting_for_people_is_no_failed_job(monkeypatch: pytest.MonkeyPatch, ends: Any, code: int) -> None:
    job = load_job()
    seen: list[list[str]] = []

    def main() -> None:
        seen.append(list(sys.argv))
        sys.exit(ends)

    monkeypatch.setattr(job, "main", main)
    monkeypatch.setattr(sys, "argv", ["unused"])
    assert job.run(["in", "out", "--rounds", "3"]) == code
    assert seen == [["data-engine", "loop", "in", "out", "--rounds", "3", "--set", "generate.run.engine=ray"]]
