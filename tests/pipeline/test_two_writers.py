"""Two writers of one shard whose slices end at different images: the slices of one must not follow the other's."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from pipeline.tiny_job import config_for, rows, save_model, write_tar

from data_engine.dataset.commits import read_commits
from data_engine.errors import DatasetError, StorageError
from data_engine.masks.generator import MaskGenerator
from data_engine.pipeline import slice_committer
from data_engine.pipeline.events import ImageDone, SliceLost
from data_engine.pipeline.job import generate
from data_engine.pipeline.plan import read_plan, remaining
from data_engine.pipeline.shard_runner import ShardRunner
from data_engine.pipeline.shard_work import ShardWork
from data_engine.sam.segmenter import load_segmenter


def stop_after(count: int, output: Path, model: Path, config) -> None:
    """Another writer, stopped after `count` images, so that its slice is shorter."""
    plan = read_plan(str(output))
    assert plan is not None
    generator = MaskGenerator(load_segmenter(str(model), "cpu"), config.masks)
    done: list[ImageDone] = []
    runner = ShardRunner(str(output), plan, config, generator, lambda: len(done) >= count)
    for event in runner.run([ShardWork(plan.shards[0], remaining(plan, [])[plan.shards[0].id])]):
        done += [event] if isinstance(event, ImageDone) else []


def test_after_a_lost_slice_none_that_was_to_follow_it_is_written(tmp_path, monkeypatch):
    model = save_model(tmp_path / "tiny.safetensors")
    tar = write_tar(tmp_path / "a.tar", 6)
    config = config_for(model, "output.images_per_commit=4")
    put, interrupted = slice_committer.put, []

    def slow_put(uri: str, data: bytes) -> None:
        if threading.current_thread().name.startswith("write") and not interrupted:
            interrupted.append(1)  # before the first file is written, the other writer comes and goes
            stop_after(2, tmp_path / "out", model, config)
            time.sleep(1)  # and meanwhile the slice after it is masked and queued
        put(uri, data)

    monkeypatch.setattr(slice_committer, "put", slow_put)
    report = generate(str(tar), str(tmp_path / "out"), config)
    assert interrupted
    assert report.complete
    assert report.totals.images == 6
    monkeypatch.undo()
    generate(str(tar), str(tmp_path / "whole"), config)
    assert rows(tmp_path / "out") == rows(tmp_path / "whole")


def test_a_lost_slice_is_reported_once(tmp_path):
    model = save_model(tmp_path / "tiny.safetensors")
    tar = write_tar(tmp_path / "a.tar", 6)
    config = config_for(model, "output.images_per_commit=2")
    generate(str(tar), str(tmp_path / "out"), config)
    plan = read_plan(str(tmp_path / "out"))
    assert plan is not None
    runner = ShardRunner(
        str(tmp_path / "out"), plan, config, MaskGenerator(load_segmenter(str(model), "cpu"), config.masks)
    )
    events = list(runner.run([ShardWork(plan.shards[0], remaining(plan, [])[plan.shards[0].id])]))
    assert [e for e in events if isinstance(e, SliceLost)] == [SliceLost(plan.shards[0].id, 0)]


def test_slices_that_do_not_follow_each_other_are_never_called_complete(tmp_path):
    model = save_model(tmp_path / "tiny.safetensors")
    tar = write_tar(tmp_path / "a.tar", 6)
    generate(str(tar), str(tmp_path / "out"), config_for(model, "output.images_per_commit=2"))
    plan, (first, second, last) = read_plan(str(tmp_path / "out")), read_commits(str(tmp_path / "out"))
    assert plan is not None
    assert remaining(plan, [first, second, last]) == {}
    assert remaining(plan, [first, last])[plan.shards[0].id].slice == 1  # the listing missed one: go on from there
    with pytest.raises(DatasetError, match=r"starts at image 4, expected 2\. Remove .* from \w+-00001\.json on"):
        remaining(plan, [first, replace(last, slice=1)])


def test_after_a_slice_that_could_not_be_written_none_that_follows_it_is(tmp_path, monkeypatch):
    """It may end elsewhere when it is made again, as slices do that are committed for their age."""
    model = save_model(tmp_path / "tiny.safetensors")
    tar, output = write_tar(tmp_path / "a.tar", 6), tmp_path / "out"
    config = config_for(model, "output.images_per_commit=2")
    put, full = slice_committer.put, []

    def put_where_little_fits(uri: str, data: bytes) -> None:
        if threading.current_thread().name.startswith("write") and not full:
            full.append(1)
            time.sleep(1)  # meanwhile the slice after it is masked and queued
            raise StorageError("no space left on the device")
        put(uri, data)

    monkeypatch.setattr(slice_committer, "put", put_where_little_fits)
    with pytest.raises(StorageError, match="no space left"):
        generate(str(tar), str(output), config)
    assert read_commits(str(output)) == []
    monkeypatch.undo()
    stop_after(1, output, model, config)  # a slice of another length than the one that failed
    assert generate(str(tar), str(output), config).complete
    generate(str(tar), str(tmp_path / "whole"), config)
    assert rows(output) == rows(tmp_path / "whole")
