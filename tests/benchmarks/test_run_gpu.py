"""What the benchmark of a GPU would run on a machine that lacks some packages."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HIDING = """
from importlib.machinery import PathFinder

find = PathFinder.find_spec
hidden = {hidden!r}


@staticmethod
def find_spec(name, *rest):
    return None if name.split(".")[0] in hidden else find(name, *rest)


PathFinder.find_spec = find_spec
"""


def dry_run(tmp_path: Path, *hidden: str) -> subprocess.CompletedProcess[str]:
    (tmp_path / "sitecustomize.py").write_text(HIDING.format(hidden=hidden))
    made = {"PYTHON": os.path.relpath(sys.executable, ROOT), "PYTHONPATH": str(tmp_path), "OUT": str(tmp_path)}
    made |= {"GPU_BENCH_DEVICE": "cpu", "GPU_BENCH_SIZE": "96x64"}
    command = ["bash", "benchmarks/run_gpu.sh", "--dry-run"]
    return subprocess.run(command, check=False, cwd=ROOT, env={**os.environ, **made}, capture_output=True, text=True)


def test_without_what_can_be_spared(tmp_path: Path) -> None:
    done = dry_run(tmp_path, "pydantic", "segment_anything", "pycocotools", "ray")
    assert done.returncode == 0, done.stderr
    (tests,) = (line for line in done.stdout.splitlines() if "-m pytest" in line)
    assert "--continue-on-collection-errors" in tests
    assert "tests/masks/test_gpu_upsample.py" in tests
    assert "tests/masks/test_off_the_cpu.py" in tests
    assert "tests/train/test_training_data_off_the_cpu.py" in tests
    assert "tests/masks/test_mask_settings.py" not in tests  # it reads the job's settings
    assert "tests/masks/test_generator.py" not in tests  # its helper imports segment-anything
    assert "tests/masks/test_mask_settings.py, which needs pycocotools, pydantic" in done.stderr
    (compared,) = (line for line in done.stdout.splitlines() if "gpu_vit_b_reference.json" in line)
    assert "--against transformers " in compared
    assert f" {ROOT / os.path.relpath(sys.executable, ROOT)} -m data_engine.bench photos " in compared


def test_without_what_it_needs(tmp_path: Path) -> None:
    done = dry_run(tmp_path, "rlemasklib")
    assert done.returncode == 1
    assert "No module named 'rlemasklib'" in done.stderr
    assert "would run" not in done.stdout


@pytest.mark.parametrize("name", ["run_gpu.sh", "train_starter_gpu.sh"])
def test_bash_reads_it(name: str) -> None:
    subprocess.run(["bash", "-n", f"benchmarks/{name}"], cwd=ROOT, check=True)
