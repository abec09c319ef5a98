"""Working time: pauses are cut out, and the images of a first commit count only where it is known when work began."""

from __future__ import annotations

import json
from datetime import datetime, timedelta, timezone

import pytest

from data_engine.dataset.commits import CommitRecord, Part, Totals
from data_engine.report.runs import Run, read_runs
from data_engine.report.throughput import throughput

BEGIN = datetime(2026, 1, 1, tzinfo=timezone.utc)


def at(seconds: float) -> str:
    return (BEGIN + timedelta(seconds=seconds)).isoformat(timespec="seconds")


def commit(seconds: float, images: int = 10) -> CommitRecord:
    part = Part(file="x", size=1, sha256="0", rows=images)
    return CommitRecord(
        fingerprint="f", shard="s", slice=0, first_image=0, final=False, images=part, masks=part,
        totals=Totals(images=images), owner="o", attempt="a", timings={"decode": 0.5}, committed_at=at(seconds),
    )  # fmt: skip


def run(seconds: float) -> Run:
    return Run(
        run=f"r{seconds}", started=at(seconds), ended=at(seconds + 1), seconds=1, images=0, masks=0, failures={},
        images_per_second=0,
    )  # fmt: skip


def test_a_steady_job_has_one_rate():
    told = throughput([commit(10 * i) for i in range(1, 61)], [run(0)])
    assert (told.seconds, told.images, told.pauses) == (600, 600, ())
    assert told.as_json()["images_per_second"] == 1
    assert set(told.rates) == {1.0}
    assert told.stage_seconds == {"decode": 30.0}


def test_without_the_run_the_first_commit_starts_the_clock():
    told = throughput([commit(10 * i) for i in range(1, 61)], [])
    assert (told.seconds, told.images) == (590, 590)


def test_a_night_in_between_is_cut_out():
    evening = [commit(10 * i) for i in range(1, 31)]
    morning = [commit(50_000 + 10 * i) for i in range(1, 31)]
    told = throughput(evening + morning, [run(0), run(50_000)])
    assert (told.seconds, told.images, told.pauses) == (600, 600, (300,))
    assert told.as_json()["images_per_second"] == 1


def test_a_run_that_began_before_the_pause_does_not_fill_it():
    told = throughput([commit(10), commit(20), commit(50_000)], [run(0)])
    assert (told.seconds, told.images, told.pauses) == (20, 20, (20,))


@pytest.mark.parametrize("records", [[], [commit(5)]])
def test_too_little_to_tell(records):
    told = throughput(records, [])
    assert (told.rates, told.seconds) == ((), 0)
    assert told.as_json()["images_per_second"] is None


def test_runs_are_read_in_the_order_of_their_beginning(tmp_path):
    line = {"images": 4, "masks": 9, "failures": {"corrupt": 1}, "images_per_second": 0.4}
    for name, end in (("late", 900), ("early", 100)):
        (tmp_path / "_runs" / name).mkdir(parents=True)
        lines = [json.dumps({**line, "run": name, "time": at(t), "seconds": t - end + 60}) for t in (end - 30, end)]
        (tmp_path / "_runs" / name / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    for name, text in (("torn", '{"time": "2026'), ("empty", ""), ("other", "[1]")):
        (tmp_path / "_runs" / name).mkdir()
        (tmp_path / "_runs" / name / "metrics.jsonl").write_text(text)
    runs = read_runs(str(tmp_path))
    assert [(found.run, found.started, found.seconds) for found in runs] == [
        ("early", at(40), 60),
        ("late", at(840), 60),
    ]
    assert read_runs(str(tmp_path / "nowhere")) == []
