"""jobs/: what they run, and the exit codes that a job server acts on."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from infra_files import ROOT


def load(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(f"jobs_{name}", ROOT / "jobs" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("ends", "code"), [(0, 0), (None, 0), (3, 0), (1, 1), (2, 2), (130, 130), ("why", 1)])
def test_only_failed_images_are_no_failed_job(monkeypatch: pytest.MonkeyPatch, ends: Any, code: int) -> None:
    job = load("generate")
    seen: list[list[str]] = []

    def main() -> None:
        seen.append(list(sys.argv))
        sys.exit(ends)

    monkeypatch.setattr(job, "main", main)
    monkeypatch.setattr(sys, "argv", ["unused"])
    assert job.run(["in", "out", "--config", "sa1b"]) == code
    assert seen == [["data-engine", "generate", "in", "out", "--config", "sa1b", "--engine", "ray"]]


def test_a_wrong_setting_fails_the_job(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "jobs" / "generate.py"), str(tmp_path), str(tmp_path / "out")]
    done = subprocess.run([*command, "--set", "run.ray.worker=3"], capture_output=True, text=True, check=False)
    assert done.returncode in {1, 2}
    assert "workers" in done.stderr  # the nearest known name


def test_auditing_nothing_fails(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "jobs" / "audit.py"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "no dataset" in done.stderr
