"""metrics.jsonl of a run: lines that add up, written while it runs; a store that refuses does not stop the run."""

from __future__ import annotations

import json

from data_engine.pipeline.events import ImageDone
from data_engine.pipeline.run_log import RunLog


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def lines(root) -> list[dict]:
    (file,) = (root / "_runs").glob("*/metrics.jsonl")
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_lines_come_while_the_run_lasts_and_add_up(tmp_path):
    clock = Clock()
    log = RunLog(str(tmp_path), "run-1", clock)
    for number in range(90):
        clock.now += 1
        log.event(ImageDone("s", f"{number}.jpg", 3, "corrupt" if number == 5 else None, None, 0.1))
        log.sample({"workers": {"busy": 2}})
    assert [line["images"] for line in lines(tmp_path)] == [30, 60, 90]
    last = lines(tmp_path)[-1]
    assert (last["run"], last["masks"], last["failures"], last["workers"]) == (
        "run-1",
        270,
        {"corrupt": 1},
        {"busy": 2},
    )
    assert last["images_per_second"] == 1


def test_a_long_run_writes_more_rarely(tmp_path):
    clock = Clock()
    log = RunLog(str(tmp_path), "run-1", clock)
    for _ in range(24 * 30):
        clock.now += 3600
        log.sample()
    log_size = len(lines(tmp_path))
    clock.now += 60
    log.sample()
    assert len(lines(tmp_path)) == log_size


def test_a_place_that_cannot_be_written_costs_the_metrics_only(tmp_path, caplog):
    (tmp_path / "_runs").write_text("a file where the folder should be")
    RunLog(str(tmp_path), "run-1").write()
    assert "metrics were not written" in caplog.text
