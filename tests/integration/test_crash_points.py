"""The commit's crash-point matrix: the process dies before and after every write, and the job still ends right."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from pipeline.tiny_job import KEEP_ALL, config_for, rows, save_model, write_tar

from data_engine.dataset.audit import PlannedCount, audit
from data_engine.dataset.reader import MaskDataset
from data_engine.pipeline.job import generate
from data_engine.pipeline.plan import read_plan

# Runs a job in which the `count`-th call of one writing function dies, before or after it has done its work.
DYING = """
import importlib, os, signal, sys
module, name, count, when, source, output, *overrides = sys.argv[1:]
module = importlib.import_module("data_engine.pipeline." + module)
real, calls = getattr(module, name), []

def dying(*args, **kwargs):
    calls.append(1)
    last = len(calls) == int(count)
    if last and when == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    result = real(*args, **kwargs)
    if last:
        os.kill(os.getpid(), signal.SIGKILL)
    return result

setattr(module, name, dying)
from data_engine.config import load_config
from data_engine.pipeline.job import generate
generate(source, output, load_config("reference", overrides))
"""
# module, function, which call: 7 images in slices of 3 are three commits of two files and a record
WRITES = {
    "shard table of the plan": ("plan", "put", 1),
    "plan": ("plan", "put_if_absent", 1),
    "images file of a slice": ("slice_committer", "put", 3),
    "masks file of a slice": ("slice_committer", "put", 4),
    "first commit record": ("slice_committer", "put_if_absent", 1),
    "commit record": ("slice_committer", "put_if_absent", 2),
    "final commit record": ("slice_committer", "put_if_absent", 3),
    "table of the manifest": ("job", "put", 1),
    "manifest": ("job", "put_if_absent", 1),
}


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, tuple[str, ...], tuple]:
    folder = tmp_path_factory.mktemp("job")
    model = save_model(folder / "tiny.safetensors")
    tar = write_tar(folder / "a.tar", 7, broken=(2,))
    overrides = (f"model.name={model}", "run.device=cpu", *KEEP_ALL, "output.images_per_commit=3")
    generate(str(tar), str(folder / "whole"), config_for(model, *overrides))
    return tar, overrides, rows(folder / "whole")


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("write", WRITES)
def test_a_death_at_any_write_costs_nothing_and_doubles_nothing(job, tmp_path, write, when):
    tar, overrides, expected = job
    module, function, count = WRITES[write]
    command = [sys.executable, "-c", DYING, module, function, str(count), when, str(tar), str(tmp_path / "out")]
    died = subprocess.run([*command, *overrides], capture_output=True, text=True, timeout=100, check=False)
    assert died.returncode == -signal.SIGKILL, died.stderr
    model = overrides[0].removeprefix("model.name=")
    assert generate(str(tar), str(tmp_path / "out"), config_for(Path(model), *overrides)).complete
    assert rows(tmp_path / "out") == expected
    plan = read_plan(str(tmp_path / "out"))
    assert plan is not None
    planned = [PlannedCount(shard.id, shard.images) for shard in plan.shards]
    report = audit(MaskDataset(tmp_path / "out"), planned, plan.fingerprint)
    assert report.findings == []
    assert report.complete
