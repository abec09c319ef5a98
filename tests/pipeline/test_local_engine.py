"""Whole jobs in this process: equal results however they are cut, resumed, shared or disturbed."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from pipeline.tiny_job import KEEP_ALL, config_for, picture, rows, write_photos, write_tar
from rich.console import Console

from data_engine.dataset.audit import PlannedCount, audit
from data_engine.dataset.reader import MaskDataset
from data_engine.errors import DatasetError, ModelFailure, PlanMismatch, SourceError, StorageError
from data_engine.masks.generator import MaskGenerator
from data_engine.pipeline.job import generate
from data_engine.pipeline.plan import read_plan
from data_engine.pipeline.progress import Progress
from data_engine.sam.segmenter import SamSegmenter


def assert_whole(output: Path | str) -> None:
    plan = read_plan(str(output))
    assert plan is not None
    planned = [PlannedCount(shard.id, shard.images) for shard in plan.shards]
    report = audit(MaskDataset(str(output)), planned, plan.fingerprint)
    assert report.findings == []
    assert report.complete


def test_every_image_becomes_a_row_and_failures_say_why(tiny_model, tmp_path):
    photos = write_photos(tmp_path / "photos", 5)
    (photos / "broken.jpg").write_bytes(picture(1)[:300])
    (photos / "empty.png").write_bytes(b"")
    (photos / "notes.txt").write_text("not an image")
    report = generate(str(photos), str(tmp_path / "out"), config_for(tiny_model))
    assert (report.complete, report.exit_code) == (True, 3)
    images, masks = rows(tmp_path / "out")
    assert len(images) == 7
    failed = {row["image_id"]: row["error_type"] for row in images if row["status"] == "failed"}
    assert failed == {"broken.jpg": "truncated", "empty.png": "empty"}
    assert all(row["error_message"] for row in images if row["status"] == "failed")
    assert len(masks) == sum(row["n_masks"] for row in images) > 5
    assert_whole(tmp_path / "out")


def test_rows_are_what_the_generator_returns(tiny_model, tmp_path):
    import io

    import numpy as np
    from PIL import Image

    from data_engine.sam.segmenter import load_segmenter

    photos = write_photos(tmp_path / "photos", 2)
    config = config_for(tiny_model)
    generate(str(photos), str(tmp_path / "out"), config)
    generator = MaskGenerator(load_segmenter(str(tiny_model), "cpu"), config.masks)
    for image in MaskDataset(tmp_path / "out"):
        pixels = np.asarray(Image.open(io.BytesIO((photos / image.image_id).read_bytes())).convert("RGB"))
        expected = generator.generate_batch([pixels])[0].records("coco_rle")
        stored = image.masks.to_pylist()
        assert len(stored) == len(expected) > 0
        for ours, theirs in zip(stored, expected, strict=True):
            assert ours["counts"] == theirs["segmentation"]["counts"]
            assert ours["area"] == theirs["area"]
            x, y, w, h = theirs["bbox"]
            assert [ours[f"bbox_{side}"] for side in "xywh"] == [x, y, w + 1, h + 1]
            assert [[ours["point_x"], ours["point_y"]]] == theirs["point_coords"]
            assert ours["predicted_iou"] == pytest.approx(theirs["predicted_iou"], abs=1e-6)
            assert ours["stability_score"] == pytest.approx(theirs["stability_score"], abs=1e-6)


@pytest.mark.parametrize("per_commit", [1, 4, 100])
def test_how_a_job_is_cut_does_not_change_its_rows(tiny_model, tmp_path, per_commit):
    tar = write_tar(tmp_path / "in" / "a.tar", 9, broken=(3,))
    generate(str(tar), str(tmp_path / "whole"), config_for(tiny_model))
    generate(str(tar), str(tmp_path / "cut"), config_for(tiny_model, f"output.images_per_commit={per_commit}"))
    assert rows(tmp_path / "cut") == rows(tmp_path / "whole")
    assert len(MaskDataset(tmp_path / "cut").commits) == -(-9 // per_commit)
    assert_whole(tmp_path / "cut")


def test_old_slices_are_committed_before_they_are_full(tiny_model, tmp_path):
    tar = write_tar(tmp_path / "a.tar", 5)
    generate(str(tar), str(tmp_path / "out"), config_for(tiny_model, "run.commit_seconds=1e-6"))
    assert len(MaskDataset(tmp_path / "out").commits) == 5
    assert_whole(tmp_path / "out")


@pytest.mark.parametrize("source", ["tar", "folder", "manifest", "parquet"])
def test_an_interrupted_job_goes_on_to_equal_rows(tiny_model, tmp_path, source, monkeypatch):
    photos = write_photos(tmp_path / "photos", 10)
    if source == "tar":
        given = write_tar(tmp_path / "a.tar", 10)
    elif source == "manifest":
        given = tmp_path / "list.txt"
        given.write_text("".join(f"{path}\n" for path in sorted(photos.iterdir())))
    elif source == "parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        given = tmp_path / "images.parquet"
        table = pa.table({"image": [picture(i) for i in range(10)]})
        pq.write_table(table, given, row_group_size=4)
    else:
        given = photos
    config = config_for(tiny_model, "output.images_per_commit=3")
    generate(str(given), str(tmp_path / "whole"), config)

    real, runs = MaskGenerator.run, []

    def killing_run(self, *args, **kwargs):
        runs.append(1)
        if len(runs) in (5, 9):
            raise KeyboardInterrupt
        return real(self, *args, **kwargs)

    monkeypatch.setattr(MaskGenerator, "run", killing_run)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            generate(str(given), str(tmp_path / "out"), config)
        assert not MaskDataset(tmp_path / "out").complete
    assert generate(str(given), str(tmp_path / "out"), config).complete
    assert rows(tmp_path / "out") == rows(tmp_path / "whole")
    assert_whole(tmp_path / "out")


def test_images_without_masks_are_good_rows_that_say_what_was_rejected(tiny_model, tmp_path):
    photos = write_photos(tmp_path / "photos", 2)
    report = generate(str(photos), str(tmp_path / "out"), config_for(tiny_model, "masks.pred_iou_thresh=99"))
    assert report.exit_code == 0
    images, masks = rows(tmp_path / "out")
    assert masks == []
    assert [(row["n_candidates"], row["n_rejected_iou"]) for row in images] == [(48, 48)] * 2
    assert_whole(tmp_path / "out")
    assert [len(image) for image in MaskDataset(tmp_path / "out")] == [0, 0]


def test_a_finished_job_is_left_alone(tiny_model, tmp_path):
    photos = write_photos(tmp_path / "photos", 3)
    generate(str(photos), str(tmp_path / "out"), config_for(tiny_model))
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*") if path.is_file()}
    report = generate(str(photos), str(tmp_path / "out"), config_for(tiny_model))
    assert report.complete
    assert report.new.images == 0
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("masks.points_per_side=5", "masks.points_per_side: 4 -> 5"),
        ("output.images_per_commit=7", "output.images_per_commit: 1000 -> 7"),
        ("input.max_pixels=1000", "input.max_pixels"),
    ],
)
def test_another_config_is_refused_by_name(tiny_model, tmp_path, override, named):
    photos = write_photos(tmp_path / "photos", 2)
    generate(str(photos), str(tmp_path / "out"), config_for(tiny_model))
    with pytest.raises(PlanMismatch, match=named):
        generate(str(photos), str(tmp_path / "out"), config_for(tiny_model, override))


@pytest.mark.parametrize(
    ("given", "override", "named"),
    [
        ("photos", "masks.points_per_side=5", r"masks.points_per_side: 4 -> 5"),
        ("photso", "run.decode_threads=1", r"input: .*photos\" -> .*photso\""),
    ],
)
def test_another_job_is_refused_too_when_its_input_cannot_be_listed(tiny_model, tmp_path, given, override, named):
    photos = write_photos(tmp_path / "photos", 2)
    generate(str(photos), str(tmp_path / "out"), config_for(tiny_model))
    (tmp_path / "out" / "_manifest.json").unlink()
    photos.rename(tmp_path / "elsewhere")
    with pytest.raises(PlanMismatch, match=named):
        generate(str(tmp_path / given), str(tmp_path / "out"), config_for(tiny_model, override))
    assert generate(str(photos), str(tmp_path / "out"), config_for(tiny_model)).complete


def test_another_model_is_refused_but_another_name_for_it_is_not(tiny_model, tmp_path):
    from pipeline.tiny_job import save_model

    photos = write_photos(tmp_path / "photos", 2)
    generate(str(photos), str(tmp_path / "out"), config_for(tiny_model))
    shutil.copy(tiny_model, tmp_path / "same.safetensors")
    generate(str(photos), str(tmp_path / "out"), config_for(tmp_path / "same.safetensors"))
    other = save_model(tmp_path / "other.safetensors", seed=1)
    with pytest.raises(PlanMismatch, match="sha256"):
        generate(str(photos), str(tmp_path / "out"), config_for(other))


@pytest.mark.parametrize("override", ["run.decode_threads=1", "masks.points_per_batch=3", "input.fetch_threads=1"])
def test_settings_that_only_change_speed_resume(tiny_model, tmp_path, override):
    photos = write_photos(tmp_path / "photos", 2)
    generate(str(photos), str(tmp_path / "out"), config_for(tiny_model))
    assert generate(str(photos), str(tmp_path / "out"), config_for(tiny_model, override)).complete


def test_limit_takes_the_first_images(tiny_model, tmp_path):
    write_tar(tmp_path / "in" / "a.tar", 4)
    write_tar(tmp_path / "in" / "b.tar", 4, first=4)
    generate(str(tmp_path / "in"), str(tmp_path / "out"), config_for(tiny_model), limit=6)
    assert [row["image_id"] for row in rows(tmp_path / "out")[0]] == [
        *(f"a.tar/0000{i}.jpg" for i in range(4)),
        *(f"b.tar/0000{i}.jpg" for i in range(4, 6)),
    ]
    assert_whole(tmp_path / "out")


def test_two_at_once_make_one_dataset(tiny_model, tmp_path):
    for i in range(4):
        write_tar(tmp_path / "in" / f"{i}.tar", 6, first=6 * i)
    config = config_for(tiny_model, "output.images_per_commit=2")
    generate(str(tmp_path / "in"), str(tmp_path / "whole"), config)
    command = [sys.executable, "-m", "data_engine.cli", "generate", str(tmp_path / "in"), str(tmp_path / "out")]
    command += ["--config", "reference", "--model", str(tiny_model), "--device", "cpu"]
    command += [part for value in (*KEEP_ALL, "output.images_per_commit=2") for part in ("--set", value)]
    processes = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    for process in processes:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    assert rows(tmp_path / "out") == rows(tmp_path / "whole")
    assert_whole(tmp_path / "out")


def test_a_tar_that_was_cut_short_ends_the_shard_and_is_reported(tiny_model, tmp_path):
    tar = write_tar(tmp_path / "a.tar", 6)
    tar.write_bytes(tar.read_bytes()[: tar.stat().st_size // 2])
    report = generate(str(tar), str(tmp_path / "out"), config_for(tiny_model))
    assert report.complete
    assert report.exit_code == 3
    assert "a.tar" in report.damaged_shards[0]
    assert 0 < len(rows(tmp_path / "out")[0]) < 6
    assert_whole(tmp_path / "out")


def test_an_input_that_changed_since_it_was_planned_is_not_mixed_in(tiny_model, tmp_path, monkeypatch):
    tar = write_tar(tmp_path / "a.tar", 4)
    config = config_for(tiny_model, "output.images_per_commit=2")
    monkeypatch.setattr(MaskGenerator, "run", stop_at(3, MaskGenerator.run))
    with pytest.raises(KeyboardInterrupt):
        generate(str(tar), str(tmp_path / "out"), config)
    write_tar(tar, 5, first=100)
    report = generate(str(tar), str(tmp_path / "out"), config)
    assert not report.complete
    assert report.exit_code == 1
    assert "a.tar" in report.failed_shards[0].message


def stop_at(number, real):
    runs = []

    def run(self, *args, **kwargs):
        runs.append(1)
        if len(runs) == number:
            raise KeyboardInterrupt
        return real(self, *args, **kwargs)

    return run


def test_a_grown_input_is_mentioned_and_left_out(tiny_model, tmp_path, capsys):
    from rich.console import Console

    from data_engine.pipeline.progress import Progress

    photos = write_photos(tmp_path / "photos", 3)
    generate(str(photos), str(tmp_path / "out"), config_for(tiny_model))
    write_photos(photos, 5)
    generate(str(photos), str(tmp_path / "out"), config_for(tiny_model), progress=Progress(Console(width=300)))
    assert "2 entries that are not in this dataset's plan" in capsys.readouterr().out
    assert len(rows(tmp_path / "out")[0]) == 3


def test_a_job_that_goes_on_has_the_list_of_its_images_once(tiny_model, tmp_path, monkeypatch):
    """Of millions, twice would not fit. The table of the plan is read where the input is not what it was."""
    photos, read = write_photos(tmp_path / "photos", 3), []
    generate(str(photos), str(tmp_path / "out"), config_for(tiny_model))
    monkeypatch.setattr("data_engine.pipeline.job.read_plan", lambda root: read.append(root) or read_plan(root))
    assert generate(str(photos), str(tmp_path / "out"), config_for(tiny_model)).exit_code == 0
    assert read == []
    write_photos(photos, 4)
    assert generate(str(photos), str(tmp_path / "out"), config_for(tiny_model)).totals.images == 3
    assert read == [str(tmp_path / "out")]


def test_one_image_that_breaks_the_model_fails_alone(tiny_model, tmp_path, monkeypatch):
    photos = write_photos(tmp_path / "photos", 4)
    monkeypatch.setattr(MaskGenerator, "run", raise_at(2, MaskGenerator.run))
    report = generate(str(photos), str(tmp_path / "out"), config_for(tiny_model))
    assert report.totals.errors == {"internal_error": 1}
    assert_whole(tmp_path / "out")


def test_a_job_in_which_many_images_break_the_model_logs_a_few_tracebacks(tiny_model, tmp_path, monkeypatch, caplog):
    photos, real, runs = write_photos(tmp_path / "photos", 30), MaskGenerator.run, []

    def every_second(self, *args, **kwargs):
        runs.append(1)
        if len(runs) % 2:
            raise RuntimeError("a kernel failed")
        return real(self, *args, **kwargs)

    monkeypatch.setattr(MaskGenerator, "run", every_second)
    report = generate(str(photos), str(tmp_path / "out"), config_for(tiny_model))
    assert report.totals.errors == {"internal_error": 15}
    logged = [record.message for record in caplog.records if "the model failed" in record.message]
    assert len(logged) == 10
    assert logged[-1].endswith("further ones are told by their rows alone")


def raise_at(number, real):
    runs = []

    def run(self, *args, **kwargs):
        runs.append(1)
        if number is None or len(runs) == number:
            raise RuntimeError("a kernel failed")
        return real(self, *args, **kwargs)

    return run


def test_a_model_that_gives_nan_for_an_image_fails_that_image(tiny_model, tmp_path, monkeypatch):
    from data_engine.sam.segmenter import SamSegmenter

    real, calls = SamSegmenter.encode, []

    def encode(self, views):
        embeddings = real(self, views)
        calls.append(1)
        if len(calls) == 2:
            embeddings.features.fill_(float("nan"))
        return embeddings

    monkeypatch.setattr(SamSegmenter, "encode", encode)
    photos = write_photos(tmp_path / "photos", 3)
    report = generate(str(photos), str(tmp_path / "out"), config_for(tiny_model))
    assert report.totals.errors == {"non_finite": 1}
    assert_whole(tmp_path / "out")


def test_running_out_of_memory_is_reported_and_changes_no_mask(tiny_model, tmp_path, monkeypatch):
    photos = write_photos(tmp_path / "photos", 3)
    generate(str(photos), str(tmp_path / "whole"), config_for(tiny_model))
    real = SamSegmenter.decode

    def decode(self, *args, points, **kwargs):
        if len(points) > 5:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(self, *args, points=points, **kwargs)

    monkeypatch.setattr(SamSegmenter, "decode", decode)
    buffer = io.StringIO()
    progress = Progress(Console(file=buffer, width=200))
    report = generate(str(photos), str(tmp_path / "out"), config_for(tiny_model), progress=progress)
    assert report.points_at_once == 4
    assert "going on with 4 prompts at a time" in buffer.getvalue()
    assert "ran out; 4 prompts at a time fitted" in buffer.getvalue()
    assert rows(tmp_path / "out") == rows(tmp_path / "whole")


def test_a_model_that_fails_on_everything_stops_the_job(tiny_model, tmp_path, monkeypatch):
    photos = write_photos(tmp_path / "photos", 30)
    monkeypatch.setattr(MaskGenerator, "run", raise_at(None, MaskGenerator.run))
    with pytest.raises(ModelFailure, match=r"5 images in a row.*a kernel failed"):
        generate(str(photos), str(tmp_path / "out"), config_for(tiny_model, "run.give_up_after=5"))


def test_memory_that_others_take_stops_the_job_and_makes_few_failed_rows(tiny_model, tmp_path, monkeypatch):
    photos = write_photos(tmp_path / "photos", 12)
    real, calls = MaskGenerator.run, []

    def run(self, *args):
        calls.append(1)
        if len(calls) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(self, *args)

    monkeypatch.setattr(MaskGenerator, "run", run)
    config = config_for(tiny_model, "run.give_up_after=3", "output.images_per_commit=4")
    with pytest.raises(ModelFailure, match=r"3 images in a row.*out_of_memory"):
        generate(str(photos), str(tmp_path / "out"), config)
    monkeypatch.undo()
    assert generate(str(photos), str(tmp_path / "out"), config).totals.errors == {}
    assert_whole(tmp_path / "out")


def test_nothing_runs_on_after_an_error(tiny_model, tmp_path, monkeypatch):
    photos = write_photos(tmp_path / "photos", 30)
    monkeypatch.setattr("data_engine.pipeline.slice_committer.put", refuse)
    before = set(threading.enumerate())
    with pytest.raises(StorageError, match="no space left"):
        generate(str(photos), str(tmp_path / "out"), config_for(tiny_model, "output.images_per_commit=2"))
    assert set(threading.enumerate()) <= before


def refuse(uri, data):
    raise StorageError(f"{uri}: no space left on the device")


@pytest.mark.skipif(os.geteuid() == 0 and not Path("/proc/self").exists(), reason="needs a read-only place")
def test_a_second_ctrl_c_does_not_wait_for_a_store_that_is_away(tiny_model, tmp_path, monkeypatch):
    from data_engine.pipeline import slice_committer

    photos = write_photos(tmp_path / "photos", 4)
    config = config_for(tiny_model, "output.images_per_commit=1")
    put, run, waiting, back = slice_committer.put, MaskGenerator.run, threading.Event(), threading.Event()

    def away(uri, data):
        waiting.set()
        back.wait(20)
        put(uri, data)

    def stopped_at_once(self, *args, **kwargs):
        if waiting.is_set():
            raise KeyboardInterrupt
        return run(self, *args, **kwargs)

    monkeypatch.setattr(slice_committer, "put", away)
    monkeypatch.setattr(MaskGenerator, "run", stopped_at_once)
    begun = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        generate(str(photos), str(tmp_path / "out"), config)
    seconds = time.monotonic() - begun
    back.set()
    assert seconds < 10
    monkeypatch.undo()
    assert generate(str(photos), str(tmp_path / "out"), config).totals.images == 4
    assert_whole(tmp_path / "out")


def test_an_output_that_cannot_be_written_stops_before_any_work(tiny_model, tmp_path):
    photos = write_photos(tmp_path / "photos", 1)
    with pytest.raises(StorageError, match="/proc/self"):
        generate(str(photos), "/proc/self/out", config_for(tiny_model))


def test_an_empty_input_is_an_error_that_names_it(tiny_model, tmp_path):
    (tmp_path / "photos").mkdir()
    with pytest.raises(SourceError, match="photos"):
        generate(str(tmp_path / "photos"), str(tmp_path / "out"), config_for(tiny_model))
    assert read_plan(str(tmp_path / "out")) is None


def test_a_damaged_plan_is_named(tiny_model, tmp_path):
    photos = write_photos(tmp_path / "photos", 1)
    generate(str(photos), str(tmp_path / "out"), config_for(tiny_model))
    path = tmp_path / "out/_plan/job.json"
    job = json.loads(path.read_text())
    job["config"]["masks"]["points_per_side"] = 99
    path.write_text(json.dumps(job))
    with pytest.raises(DatasetError, match="does not have the fingerprint"):
        generate(str(photos), str(tmp_path / "out"), config_for(tiny_model))


def test_from_and_to_s3(tiny_model, tmp_path, bucket):
    import fsspec

    write_tar(tmp_path / "in" / "a.tar", 4)
    write_tar(tmp_path / "in" / "b.tar", 3, first=4, broken=(5,))
    fs = fsspec.filesystem("s3")
    fs.put(str(tmp_path / "in"), f"{bucket}/in", recursive=True)
    config = config_for(tiny_model, "output.images_per_commit=2")
    generate(str(tmp_path / "in"), str(tmp_path / "local"), config)
    report = generate(f"{bucket}/in/{{a,b}}.tar", f"{bucket}/out", config)
    assert report.complete
    assert_whole(f"{bucket}/out")
    ours, theirs = rows(f"{bucket}/out"), rows(tmp_path / "local")
    differ = ("uri", "shard")
    assert [{k: v for k, v in row.items() if k not in differ} for row in ours[0]] == [
        {k: v for k, v in row.items() if k not in differ} for row in theirs[0]
    ]
    assert ours[1] == theirs[1]
    assert MaskDataset(f"{bucket}/out").duckdb().sql("select count(*) from masks").fetchall() == [(len(ours[1]),)]


def test_no_credentials_are_written_anywhere(tiny_model, tmp_path, bucket):
    import fsspec

    fs = fsspec.filesystem("s3")
    fs.put(str(write_tar(tmp_path / "a.tar", 2)), f"{bucket}/a.tar")
    generate(f"{bucket}/a.tar", f"{bucket}/out", config_for(tiny_model))
    for path in fs.find(f"{bucket}/out"):
        assert os.environ["AWS_SECRET_ACCESS_KEY"].encode() not in fs.cat_file(path), path


def test_a_picture_that_hangs_the_decoder_does_not_keep_a_stopped_job(tiny_model, tmp_path, monkeypatch):
    """What native code does with a hostile file cannot be broken off; what is masked is committed all the same."""
    from data_engine.pipeline import image_decoders

    photos = write_photos(tmp_path / "photos", 4)
    real, run, masked, let_go = image_decoders.decode_image, MaskGenerator.run, [], threading.Event()

    def hanging(image, *args):
        if image.image_id == "002.jpg":
            let_go.wait(20)
        return real(image, *args)

    def counted(self, *args, **kwargs):
        masks = run(self, *args, **kwargs)
        masked.append(1)
        return masks

    def stop_when_hung():
        while len(masked) < 2:
            time.sleep(0.01)
        time.sleep(0.3)  # now the third is waited for
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(image_decoders, "decode_image", hanging)
    monkeypatch.setattr(MaskGenerator, "run", counted)
    stopper = threading.Thread(target=stop_when_hung)
    stopper.start()
    report = generate(str(photos), str(tmp_path / "out"), config_for(tiny_model))
    still_hanging = not let_go.is_set()
    let_go.set()
    stopper.join()
    assert (report.exit_code, report.totals.images, still_hanging) == (130, 2, True)
    monkeypatch.undo()
    assert generate(str(photos), str(tmp_path / "out"), config_for(tiny_model)).totals.images == 4


@pytest.mark.parametrize("source", ["folder", "tar"])
def test_only_a_tar_that_goes_on_is_asked_for_its_ids(tiny_model, tmp_path, monkeypatch, source):
    given = write_photos(tmp_path / "in", 4) if source == "folder" else write_tar(tmp_path / "a.tar", 4)
    config = config_for(tiny_model, "output.images_per_commit=2")
    generate(str(given), str(tmp_path / "out"), config)
    (tmp_path / "out" / "_manifest.json").unlink()
    next((tmp_path / "out" / "_commits").glob("*-00001.json")).unlink()
    asked, real = [], MaskDataset.image_ids

    def image_ids(self, record):
        asked.append(record.slice)
        return real(self, record)

    monkeypatch.setattr(MaskDataset, "image_ids", image_ids)
    assert generate(str(given), str(tmp_path / "out"), config).complete
    assert asked == ([] if source == "folder" else [0])
