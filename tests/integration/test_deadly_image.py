"""A photograph that ends the process it is decoded in: local runs get past it, and it alone is a failed row."""

from __future__ import annotations

import io
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from integration.ray_job import SEGFAULT, poisoned
from pipeline.tiny_job import KEEP_ALL, config_for, picture, rows, save_model, write_photos, write_tar
from rich.console import Console

from data_engine.dataset.audit import PlannedCount, audit
from data_engine.dataset.reader import MaskDataset
from data_engine.pipeline.job import generate
from data_engine.pipeline.plan import read_plan
from data_engine.pipeline.progress import Progress

# A decoder with a bug: what reads a poisoned picture reads address 0, in the thread that decodes it.
BUGGY = """
import ctypes, os, signal, sys
from data_engine.config import load_config
from data_engine.pipeline import rows
from data_engine.pipeline.job import generate
decode = rows.decode

def buggy(data, settings):
    if b"poison: segfault" in data:
        ctypes.string_at(0)
    return decode(data, settings)

rows.decode = buggy
source, output, *overrides = sys.argv[1:]
sys.exit(generate(source, output, load_config("reference", overrides)).exit_code)
"""
# A library for Parquet with a bug: the thread that reads a poisoned picture dies of it before the picture is there.
BUGGY_READER = BUGGY.replace("from data_engine.pipeline import rows", "from data_engine.images import parquet as rows")
BUGGY_READER = BUGGY_READER.replace("rows.decode", "rows._image").replace("in data:", "in data.as_py():")
# A model that cannot be run at all here, as with a broken driver.
BROKEN = BUGGY.replace(
    "rows.decode = buggy",
    "from data_engine.sam.segmenter import SamSegmenter\nSamSegmenter.encode = lambda *_: ctypes.string_at(0)",
)


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model") / "tiny.safetensors")


def start(script: str, source: object, output: object, model: Path, *settings: str) -> subprocess.Popen:
    overrides = (f"model.name={model}", "run.device=cpu", *KEEP_ALL, *settings)
    command = [sys.executable, "-c", script, str(source), str(output), *overrides]
    return subprocess.Popen(command, stderr=subprocess.DEVNULL)


def run(script: str, source: object, output: object, model: Path, *settings: str) -> int:
    return start(script, source, output, model, *settings).wait(timeout=100)


def poison_tar(path: Path, name: str) -> None:
    """One image of a tar, in its place."""
    with tarfile.open(path) as tar:
        members = [(member.name, tar.extractfile(member).read()) for member in tar]
    with tarfile.open(path, "w") as tar:
        for member, data in members:
            data = poisoned(data, SEGFAULT) if member == name else data
            info = tarfile.TarInfo(member)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def without(tables: tuple[list[dict], list[dict]], image_id: str) -> tuple[list[dict], list[dict]]:
    images, masks = tables
    return [row for row in images if row["image_id"] != image_id], [r for r in masks if r["image_id"] != image_id]


def assert_whole(output: str) -> None:
    plan = read_plan(output)
    assert plan is not None
    planned = [PlannedCount(shard.id, shard.images) for shard in plan.shards]
    report = audit(MaskDataset(output), planned, plan.fingerprint)
    assert (report.findings, report.complete) == ([], True)


@pytest.mark.parametrize("where", ["disk", "store"])
def test_it_is_left_out_after_two_deaths_and_nothing_else_is(tiny_model, tmp_path, bucket, monkeypatch, where):
    monkeypatch.setenv("DATA_ENGINE_CACHE", str(tmp_path / "cache"))
    photos = write_photos(tmp_path / "photos", 12)
    settings = ("output.images_per_commit=4", "input.images_per_shard=6")
    generate(str(photos), str(tmp_path / "whole"), config_for(tiny_model, *settings))
    (photos / "007.jpg").write_bytes(poisoned(picture(7), SEGFAULT))
    output = str(tmp_path / "out") if where == "disk" else f"{bucket}/out"
    for _ in range(2):
        assert run(BUGGY, photos, output, tiny_model, *settings) == -signal.SIGSEGV
    assert run(BUGGY, photos, output, tiny_model, *settings) == 3

    failed = MaskDataset(output)["007.jpg"].row
    assert (failed["status"], failed["error_type"]) == ("failed", "worker_died")
    assert "2 runs ended with their process at this image" in failed["error_message"]
    assert "Segmentation fault" in failed["error_message"]
    assert without(rows(output), "007.jpg") == without(rows(tmp_path / "whole"), "007.jpg")
    assert_whole(output)
    assert list((tmp_path / "out" / "_runs").glob("*.in-flight")) == []
    assert list((tmp_path / "cache").rglob("*.in-flight")) == []


def test_two_runs_at_once_that_both_die_of_it_leave_out_it_alone(tiny_model, tmp_path):
    for number in range(4):
        write_tar(tmp_path / "in" / f"{number}.tar", 5, first=5 * number)
    settings = ("output.images_per_commit=2",)
    generate(str(tmp_path / "in"), str(tmp_path / "whole"), config_for(tiny_model, *settings))
    poison_tar(tmp_path / "in" / "1.tar", "00007.jpg")
    codes: list[int] = []
    while 3 not in codes and len(codes) < 10:
        both = [start(BUGGY, tmp_path / "in", tmp_path / "out", tiny_model, *settings) for _ in range(2)]
        codes += [process.wait(timeout=100) for process in both]
    assert 3 in codes, codes
    output = str(tmp_path / "out")
    assert MaskDataset(output).totals.errors == {"worker_died": 1}
    assert MaskDataset(output)["1.tar/00007.jpg"].row["status"] == "failed"
    assert without(rows(output), "1.tar/00007.jpg") == without(rows(tmp_path / "whole"), "1.tar/00007.jpg")
    assert_whole(output)


def test_a_file_that_cannot_be_read_alive_is_given_up_from_there_and_the_others_are_done(tiny_model, tmp_path):
    for name in "ab":
        images = [poisoned(picture(n), SEGFAULT) if (name, n) == ("a", 8) else picture(n) for n in range(12)]
        (tmp_path / "in").mkdir(exist_ok=True)
        pq.write_table(pa.table({"image": images}), tmp_path / "in" / f"{name}.parquet")
    source, output = str(tmp_path / "in"), str(tmp_path / "out")
    settings = ("output.images_per_commit=4", "masks.points_per_side=1")
    generate(source, str(tmp_path / "whole"), config_for(tiny_model, *settings))
    for _ in range(2):
        assert run(BUGGY_READER, source, output, tiny_model, *settings) == -signal.SIGSEGV
    for _ in range(2):
        assert run(BUGGY_READER, source, output, tiny_model, *settings) == 1
    dataset = MaskDataset(output)
    assert (dataset.totals.images, dataset.totals.failed) == (8 + 12, 0)
    report = generate(source, output, config_for(tiny_model, *settings))
    (failed,) = report.failed_shards
    assert "a.parquet: image 8 cannot be read: 2 runs ended with their process at this image" in failed.message
    for note in (tmp_path / "out" / "_runs").glob("*.in-flight"):
        note.unlink()
    assert generate(source, output, config_for(tiny_model, *settings)).exit_code == 0
    assert rows(output) == rows(tmp_path / "whole")
    assert_whole(output)


def test_a_set_up_that_dies_at_everything_condemns_nobody(tiny_model, tmp_path):
    tar = write_tar(tmp_path / "a.tar", 6)
    for _ in range(4):
        assert run(BROKEN, tar, tmp_path / "out", tiny_model) == -signal.SIGSEGV
    said = io.StringIO()
    report = generate(
        str(tar), str(tmp_path / "out"), config_for(tiny_model), progress=Progress(Console(file=said, width=300))
    )
    assert (report.exit_code, report.totals.failed) == (0, 0)
    assert "0 images that they all ended at are left out" in said.getvalue()
    assert_whole(str(tmp_path / "out"))
