"""The loop, with a small model of random weights: rounds, resuming after a kill, people, and what is refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from pipeline.tiny_job import KEEP_ALL, save_model, write_photos
from train.labelled_folders import HEIGHT, WIDTH, discs, write_id_maps

from data_engine.dataset.reader import MaskDataset
from data_engine.errors import ConfigError, DatasetError, PlanMismatch, SourceError, UsageError
from data_engine.loop.measure import held_out
from data_engine.loop.run import Unwatched, run_loop
from data_engine.loop.selection import select
from data_engine.loop.settings import load_loop_settings
from data_engine.loop.table import as_markdown, change
from data_engine.masks import rle
from data_engine.train.data.labelled import DataFilters, open_training_data

TRAINING = {
    "model": None,
    "train.steps": 2,
    "train.accumulate": 1,
    "prompts.per_image": 2,
    "prompts.corrections": 1,
    "prompts.mask_only_rounds": 0,
    "run.tensorboard": False,
    "run.device": "cpu",
    "run.loader_threads": 1,
}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("loop")
    save_model(root / "model.safetensors")
    write_photos(root / "photos", 3)
    write_id_maps(root / "labelled", 5)
    return root


def overrides(root: Path, *more: str) -> list[str]:
    training = {key: value for key, value in TRAINING.items() if key != "model"}
    return [
        f"model={root}/model.safetensors",
        "generate.config=reference",
        "generate.run.device=cpu",
        *(f"generate.{setting}" for setting in KEEP_ALL),
        *(f"training.{key}={json.dumps(value)}" for key, value in training.items()),
        "filters={min_predicted_iou: -10, max_area_fraction: 1.0}",
        f"evaluation.data={root}/labelled",
        "evaluation.clicks=[1]",
        "evaluation.automatic=false",
        *more,
    ]


def loop(root: Path, output: Path, *more: str):
    return run_loop(str(root / "photos"), str(output), load_loop_settings(None, overrides(root, *more)))


def scores(report):
    return [(row["round"], row["model_sha256"], row["scores"]) for row in report.rows]


@pytest.fixture(scope="module")
def finished(inputs):
    return loop(inputs, inputs / "finished")


def test_every_round_has_a_row_and_its_files(inputs, finished):
    output = inputs / "finished"
    assert [row["round"] for row in finished.rows] == [0, 1, 2]
    assert finished.exit_code == 0
    assert len({row["model_sha256"] for row in finished.rows}) == 3
    for number in (1, 2):
        assert MaskDataset(str(output / f"round-{number}/masks")).complete
        row = finished.rows[number]
        assert row["masks"] == row["masks_kept"] > 0
        assert row["steps"] == 2
        assert set(row["seconds"]) == {"masks", "training", "evaluation"}
    assert json.loads((output / "rounds.json").read_text())["rows"] == finished.rows
    assert "round 2" in (output / "rounds.md").read_text()


def test_photographs_of_the_input_are_not_measured_on(inputs):
    settings = load_loop_settings(None, overrides(inputs))
    truth = held_out(settings, ["labelled/images/0.jpg", "3.jpg", "other.jpg"])
    assert [entry.image_id for entry in truth.entries] == ["1.jpg", "2.jpg", "4.jpg"]
    assert truth.left_out == 2
    with pytest.raises(UsageError, match="every image of it is in the loop's input"):
        held_out(settings, [f"{number}.jpg" for number in range(5)])


def test_a_finished_loop_does_nothing_and_may_get_more_rounds(inputs, finished):
    output = inputs / "finished"
    files = [path for path in output.rglob("*") if path.name in ("model.safetensors", "evaluation.json")]
    before = {path: path.stat().st_mtime_ns for path in files}
    again = loop(inputs, output)
    assert again.rows == finished.rows
    assert {path: path.stat().st_mtime_ns for path in files} == before
    longer = loop(inputs, output, "rounds=3")
    assert longer.rows[:3] == finished.rows
    assert longer.rows[3]["round"] == 3
    assert len(loop(inputs, output, "rounds=1").rows) == 2
    assert json.loads((output / "rounds.json").read_text())["rows"] == longer.rows


def test_another_loop_is_refused(inputs, finished):
    with pytest.raises(PlanMismatch, match=r"other settings \(settings\.filters\.min_area: 1 -> 5;"):
        loop(inputs, inputs / "finished", "filters.min_area=5")


@pytest.mark.parametrize(
    "seen",
    [pytest.param("round-1/masks/_plan/job.json", marks=pytest.mark.slow), "round-1/training/settings.yaml"],
)
def test_a_killed_loop_goes_on_to_the_same_end(inputs, finished, tmp_path, seen):
    code = "import sys; from train.test_loop_rounds import *; loop(Path(sys.argv[1]), Path(sys.argv[2]), 'rounds=2')"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    arguments = [sys.executable, "-c", code, str(inputs), str(tmp_path)]
    process = subprocess.Popen(arguments, env=environment, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (tmp_path / seen).exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert scores(loop(inputs, tmp_path)) == scores(finished)


class SignalIn(Unwatched):
    """Asks this process to end in the middle of a step of round 1."""

    def __init__(self, step: str) -> None:
        self._step = step
        self._at: tuple[int, str] | None = None

    def began(self, number: int, step: str) -> None:
        self._at = (number, step)

    def advanced(self, done: int, total: int) -> None:
        if self._at == (1, self._step) and done == 1:
            self._at = None
            os.kill(os.getpid(), signal.SIGTERM)


def test_a_signal_stops_a_loop_in_its_training_and_it_goes_on(inputs, finished, tmp_path):
    settings = load_loop_settings(None, overrides(inputs, "rounds=2"))
    stopped = run_loop(str(inputs / "photos"), str(tmp_path), settings, SignalIn("training"))
    assert stopped.exit_code == 130
    assert [row["round"] for row in stopped.rows] == [0]
    assert torch.load(tmp_path / "round-1/training/state.pt")["workers"][0]["progress"]["step"] == 1
    seconds = json.loads((tmp_path / "round-1/seconds.json").read_text())
    (tmp_path / "round-1/seconds.json").write_text(json.dumps({**seconds, "training": 1000.0}))
    done = loop(inputs, tmp_path)
    assert scores(done) == scores(finished)
    assert done.rows[1]["seconds"]["training"] > 1000  # of both runs; masks were found done
    assert done.rows[1]["seconds"]["masks"] == seconds["masks"]


def test_filters_that_keep_nothing_end_with_a_remedy(inputs, tmp_path):
    with pytest.raises(DatasetError, match=r"round 1: none of its \d+ masks passes the filters; loosen them"):
        loop(inputs, tmp_path, "filters.min_predicted_iou=99")


def test_the_selection_counts_what_the_reader_gives(inputs, finished):
    masks = str(inputs / "finished/round-1/masks")
    areas = MaskDataset(masks).masks(columns=["area"])["area"].to_pylist()
    filters = DataFilters(min_predicted_iou=-10, min_area=sorted(areas)[len(areas) // 2], max_area_fraction=0.6)
    images = list(open_training_data(f"dataset:{masks}", filters).epoch(0, seed=0))
    kept = select(masks, filters, deduplicated=False)
    assert (kept.images, kept.masks) == (3, len(areas))
    assert (kept.images_kept, kept.masks_kept) == (len(images), sum(len(image.masks) for image in images))


def test_a_score_that_is_the_threshold_is_selected(inputs, finished):
    masks = str(inputs / "finished/round-1/masks")
    scores = MaskDataset(masks).masks(columns=["predicted_iou"])["predicted_iou"].to_numpy()
    for score in scores[:8]:
        least = float(str(score))  # as a person would write it: in double, it may be more than the score
        kept = select(masks, DataFilters(min_predicted_iou=least), deduplicated=False)
        assert kept.masks_kept == (scores >= score).sum()


def coco(root: Path, path: Path) -> None:
    """Masks that people made for the photographs."""
    images, annotations = [], []
    for number in range(3):
        images.append({"id": number, "file_name": f"{number:03d}.jpg", "height": HEIGHT, "width": WIDTH})
        counts = rle.counts_string(rle.encode(discs(number, 1)[0]))
        annotations.append(
            {"id": number, "image_id": number, "segmentation": {"size": [HEIGHT, WIDTH], "counts": counts}}
        )
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": []}))


def test_rounds_with_people_wait_for_their_masks_then_train_on_them(inputs, tmp_path):
    people = f"coco:{tmp_path}/corrected-{{round}}.json@{inputs}/photos"
    stages = ("stages=[assisted, semi-automatic]", f"people={json.dumps(people)}")
    waiting = loop(inputs, tmp_path / "out", *stages)
    assert waiting.exit_code == 4
    assert "round 1 waits for masks of people" in waiting.waiting
    assert [row["round"] for row in waiting.rows] == [0]
    coco(inputs, tmp_path / "corrected-1.json")
    second = loop(inputs, tmp_path / "out", *stages)
    assert "round 2 waits" in second.waiting
    first = json.loads((tmp_path / "out/round-1/training/card.json").read_text())["data"]["training"]
    assert first["kind"] == "coco"
    coco(inputs, tmp_path / "corrected-2.json")
    done = loop(inputs, tmp_path / "out", *stages)
    assert done.exit_code == 0
    mixed = json.loads((tmp_path / "out/round-2/training/card.json").read_text())["data"]["training"]
    assert [part["kind"] for part in mixed["parts"]] == ["dataset", "coco"]


def test_photographs_that_are_measured_on_are_not_trained_on(inputs, tmp_path):
    with pytest.raises(UsageError, match=r"5 photographs, such as 0\.jpg, would be trained on and measured on"):
        loop(inputs, tmp_path, f"mix=idmaps:{inputs}/labelled")


def test_duplicates_are_not_trained_on(inputs, tmp_path):
    pytest.importorskip("duckdb")
    photos = write_photos(tmp_path / "photos", 3)
    (photos / "again.jpg").write_bytes((photos / "000.jpg").read_bytes())
    settings = load_loop_settings(None, overrides(inputs, "deduplicate=true", "rounds=1"))
    report = run_loop(str(photos), str(tmp_path / "out"), settings)
    assert (report.rows[1]["images"], report.rows[1]["images_kept"]) == (4, 3)
    card = json.loads((tmp_path / "out/round-1/training/card.json").read_text())
    assert card["data"]["training"]["source"].endswith("round-1/masks")


def test_nothing_to_measure_on_is_said_before_the_work(inputs, tmp_path):
    with pytest.raises(UsageError, match="ground truth that it does not train on"):
        loop(inputs, tmp_path / "out", "evaluation.data=null")
    with pytest.raises(UsageError, match="nothing to measure"):
        loop(inputs, tmp_path / "out", "evaluation.clicks=[]", "evaluation.boxes=false")
    with pytest.raises(ConfigError, match="unknown kind 'scene'"):
        loop(inputs, tmp_path / "out", "mix=scene:200")
    assert not (tmp_path / "out").exists()


def test_the_table_has_a_column_a_round_and_what_changed(finished):
    table = as_markdown(finished.rows)
    header, _, *lines = table.splitlines()
    assert header == "|  | start | round 1 | round 2 | change |"
    assert {line.count("|") for line in lines} == {6}
    changed = change(finished.rows)
    assert changed["1 click, mean IoU"] == pytest.approx(
        finished.rows[2]["scores"]["1 click, mean IoU"] - finished.rows[0]["scores"]["1 click, mean IoU"], abs=1e-4
    )
    assert change(finished.rows[:1]) == {}


def test_an_input_that_was_not_there_can_be_named_anew(inputs, tmp_path):
    settings = load_loop_settings(None, overrides(inputs, "rounds=1"))
    with pytest.raises(SourceError, match="does not exist"):
        run_loop(str(inputs / "photo"), str(tmp_path), settings)
    assert run_loop(str(inputs / "photos"), str(tmp_path), settings).exit_code == 0
    with pytest.raises(PlanMismatch, match="input"):
        run_loop(str(inputs / "photo"), str(tmp_path), settings)
