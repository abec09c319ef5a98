"""What people see: live rates, failures with examples, a table at the end; plain lines in a log."""

from __future__ import annotations

import errno
import io
import sys
from dataclasses import replace

import pytest
from rich.console import Console

from data_engine.dataset.commits import CommitRecord, Part, Totals
from data_engine.images.shard import Shard
from data_engine.pipeline.events import ImageDone, ShardFailed, SliceCommitted
from data_engine.pipeline.job import JobReport
from data_engine.pipeline.plan import JobPlan, PlannedShard
from data_engine.pipeline.progress import Progress, duration, summary_table


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def done(number: int, masks: int = 10, error: str | None = None) -> ImageDone:
    return ImageDone("s", f"{number}.jpg", masks, error, "it is broken" if error else None, 0.1)


@pytest.fixture
def seen():
    clock, buffer = Clock(), io.StringIO()
    progress = Progress(Console(file=buffer, width=200), clock)
    return progress, clock, buffer


def plan(images: int | None) -> JobPlan:
    counted = type("Counted", (JobPlan,), {"__slots__": (), "images": images})
    return counted(input="photos", limit=None, config={}, model_name="tiny", model_sha256="", shards=(), skipped={})


def test_a_log_gets_a_line_now_and_then_with_rate_failures_and_what_is_left(seen):
    progress, clock, buffer = seen
    progress.start(plan(100), [], resumed=False)
    for number in range(20):
        clock.now += 1
        progress.event(done(number, error="corrupt" if number == 3 else None, masks=0 if number == 3 else 10))
    lines = [line for line in buffer.getvalue().splitlines() if "images/s" in line]
    assert len(lines) == 2  # one in ten seconds
    assert lines[-1] == "20/100 images · 1.00 images/s · 190 masks (10/s) · 1 failed · 1 min 20 s to go"


def test_an_unknown_number_of_images_has_no_invented_end(seen):
    progress, clock, buffer = seen
    progress.start(plan(None), [], resumed=False)
    clock.now = 11
    progress.event(done(0))
    line = next(line for line in buffer.getvalue().splitlines() if "images/s" in line)
    assert "to go" not in line
    assert line.startswith("1 images")


def test_of_tars_the_shards_that_are_done_tell_how_far_it_is(seen):
    progress, clock, buffer = seen
    tars = replace(plan(None), shards=tuple(PlannedShard(Shard(id=f"{n:016x}", kind="tar", uri="a")) for n in range(4)))
    progress.start(tars, [record("0" * 16, final=True), record("1" * 16, final=False)], resumed=True)
    clock.now = 60
    progress.event(done(0))
    progress.event(SliceCommitted(record("1" * 16, final=True)))
    clock.now = 80
    progress.event(done(1))
    lines = [line for line in buffer.getvalue().splitlines() if "images/s" in line]
    assert [line.split(" · ")[3:] for line in lines] == [["1/4 shards"], ["2/4 shards", "about 2 min 40 s to go"]]


def record(shard: str, final: bool) -> CommitRecord:
    part = Part(file="", size=0, sha256="", rows=0)
    return CommitRecord(
        fingerprint="",
        shard=shard,
        slice=0,
        first_image=0,
        final=final,
        images=part,
        masks=part,
        totals=Totals(),
        owner="",
        attempt="",
    )


def test_a_terminal_is_drawn_on_four_times_a_second_however_many_images_are_done(monkeypatch):
    clock, drawn = Clock(), []
    progress = Progress(Console(file=io.StringIO(), force_terminal=True, width=200), clock)
    progress.start(plan(None), [], resumed=False)
    view = Progress._view
    monkeypatch.setattr(Progress, "_view", lambda self: drawn.append(1) or view(self))
    try:
        for number in range(2000):
            clock.now += 0.001
            progress.event(done(number))
    finally:
        progress.stop()
    assert 6 <= len(drawn) <= 9


def test_failed_shards_are_said_at_once(seen):
    progress, _, buffer = seen
    progress.event(ShardFailed("s1", "a.tar", "a.tar has changed"))
    assert "shard s1 failed: a.tar has changed" in buffer.getvalue()


def test_the_table_says_what_became_of_every_candidate():
    buffer = io.StringIO()
    totals = Totals(images=4, failed=1, masks=30, candidates=100, rejected_iou=50, rejected_nms=20, errors={"empty": 1})
    Console(file=buffer, width=120).print(summary_table(totals))
    text = " ".join(buffer.getvalue().split())
    for part in ("images 4", "failed 1 (empty 1)", "masks 30 (10.0 an image)", "predicted IoU 50 (50%)"):
        assert part in text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (59.9, "59 s"), (80, "1 min 20 s"), (3 * 3600 + 120, "3 h 02 min"), (100 * 3600, "4 d 4 h")],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), BrokenPipeError()])
def test_a_job_goes_on_when_nobody_can_be_told(error, monkeypatch):
    """The disk of its log is full, or Ctrl-C has ended the `tee` behind it before the job has stopped."""

    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise error

    monkeypatch.setattr(sys, "stderr", Gone())
    progress = Progress.console()
    progress.start(plan(9), [], resumed=False)
    progress.event(done(1))
    progress.note("SIGINT: stopping")
    progress.finish(JobReport(plan(9), Totals(), Totals(), 1.0, complete=False))


def test_what_could_not_be_told_is_not_kept_and_what_comes_later_is_told(seen, monkeypatch):
    progress, _, buffer = seen

    def full(text: str) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(buffer, "write", full)
        progress.note("lost")
    progress.note("told")
    assert buffer.getvalue() == "told\n"
