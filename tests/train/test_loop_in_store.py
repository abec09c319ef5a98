"""The loop with everything it leaves in a store: the same rounds as in a folder, from any machine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import fsspec
import pytest
from pipeline.tiny_job import save_model, write_photos
from train.labelled_folders import write_id_maps
from train.test_loop_rounds import overrides, scores

from data_engine.dataset.reader import MaskDataset
from data_engine.errors import PlanMismatch, StorageError, UsageError
from data_engine.loop.run import LoopReport, Unwatched, run_loop
from data_engine.loop.settings import load_loop_settings
from data_engine.train.supervised.store_lock import Pulse, only_writer_in_store


@pytest.fixture
def inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    save_model(tmp_path / "model.safetensors")
    write_photos(tmp_path / "photos", 3)
    write_id_maps(tmp_path / "labelled", 5)
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    monkeypatch.setenv("DATA_ENGINE_CACHE", str(tmp_path / "cache"))
    return tmp_path


def loop(root: Path, output: str, *more: str, watcher: Unwatched | None = None) -> LoopReport:
    settings = load_loop_settings(None, overrides(root, "rounds=1", *more))
    return run_loop(str(root / "photos"), output, settings, watcher)


class StoppedBefore(Unwatched):
    """By a signal that a step without a good moment to end at ends by: at once, but with its lock given back."""

    def __init__(self, step: str) -> None:
        self._step = step

    def began(self, number: int, step: str) -> None:
        if (number, step) == (1, self._step):
            os.kill(os.getpid(), signal.SIGTERM)


def test_rounds_in_a_store_are_those_in_a_folder_and_go_on_from_there(inputs: Path, bucket: str) -> None:
    here = loop(inputs, str(inputs / "here"))
    url = f"{bucket}/loop"
    with pytest.raises(KeyboardInterrupt):
        loop(inputs, url, watcher=StoppedBefore("evaluation"))
    fs = fsspec.filesystem("s3", use_listings_cache=False)
    assert not fs.find(f"{url}/_lock")
    trained = fs.info(f"{url}/round-1/training/card.json")
    there = loop(inputs, url)
    assert scores(there) == scores(here)
    assert there.exit_code == 0
    assert fs.info(f"{url}/round-1/training/card.json") == trained
    assert MaskDataset(f"{url}/round-1/masks").complete
    assert json.loads(fs.cat_file(f"{url}/rounds.json"))["rows"] == there.rows
    assert "round 1" in fs.cat_file(f"{url}/rounds.md").decode()
    expected = {path.name for path in (inputs / "here").iterdir() if path.name != ".lock"}
    assert {path.rsplit("/", 1)[-1] for path in fs.ls(url, detail=False)} == expected
    assert not list((inputs / "tmp").glob("data-engine-train-*"))
    with pytest.raises(PlanMismatch, match=rf"^{url} holds a loop with other settings"):
        loop(inputs, url, "filters.min_area=5")
    assert len(loop(inputs, url, "rounds=2").rows) == 3


@pytest.mark.slow
@pytest.mark.parametrize("seen", ["round-1/masks/_plan/job.json", "round-1/training/state.pt"])
def test_a_loop_that_is_killed_goes_on_on_another_machine(
    inputs: Path, bucket: str, seen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, url = loop(inputs, str(inputs / "here")), f"{bucket}/loop"
    code = "import sys; from train.test_loop_in_store import *; loop(Path(sys.argv[1]), sys.argv[2])"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "TMPDIR": str(inputs / "tmp")}
    process = subprocess.Popen([sys.executable, "-c", code, str(inputs), url], env=environment)
    fs, until = fsspec.filesystem("s3", use_listings_cache=False), time.monotonic() + 120
    while not fs.exists(f"{url}/{seen}") and process.poll() is None and time.monotonic() < until:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    monkeypatch.setenv("DATA_ENGINE_CACHE", str(inputs / "another-cache"))
    monkeypatch.setattr("data_engine.train.supervised.store_lock.PULSE", Pulse(every=0.2, silence=1.0, look=0.1))
    assert scores(loop(inputs, url)) == scores(whole)


def test_a_second_loop_and_stores_that_cannot_be_written_are_refused(
    inputs: Path, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"{bucket}/loop"
    monkeypatch.setattr("data_engine.train.supervised.store_lock.PULSE", Pulse(every=0.2, silence=5.0, look=0.1))
    with only_writer_in_store(url), pytest.raises(StorageError, match=r"process \d+ on .* is at work in it"):
        loop(inputs, url)
    assert not fsspec.filesystem("s3", use_listings_cache=False).find(url)
    for elsewhere in ("hf://datasets/me/loop", "https://host/loop"):
        with pytest.raises(UsageError, match="name a folder, or a store that takes that, such as s3://bucket/loop"):
            loop(inputs, elsewhere)
