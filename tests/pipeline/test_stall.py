"""A source that hangs: it is said, and what is masked is committed though nothing more comes."""

from __future__ import annotations

import logging
import threading
import time

from pipeline.tiny_job import config_for, rows, write_photos

from data_engine.dataset.commits import read_commits
from data_engine.pipeline import shard_reader
from data_engine.pipeline.job import generate
from data_engine.pipeline.stall import Stall


def test_it_is_said_after_two_minutes_and_ever_more_rarely(caplog):
    now = [0.0]
    stall = Stall(lambda: now[0])
    stall.mention()
    with stall.of("reading a.tar"):
        for second in range(0, 900, 10):
            now[0] = second
            stall.mention()
    assert [record.message for record in caplog.records] == [
        f"reading a.tar has taken {said} so far; still waiting" for said in ("2 min 00 s", "4 min 00 s", "8 min 00 s")
    ]
    now[0] = 10_000
    stall.mention()
    with stall.of("reading b.tar"):
        stall.mention()
    assert len(caplog.records) == 3


def test_what_is_masked_is_committed_in_time_though_nothing_more_comes(tiny_model, tmp_path, monkeypatch, caplog):
    photos = write_photos(tmp_path / "photos", 6)
    config = config_for(tiny_model, "run.commit_seconds=0.3")
    read, back, found = shard_reader.read_shard, threading.Event(), []

    def hanging(*args, **kwargs):
        for image in read(*args, **kwargs):
            if image.index == 4:
                back.wait(60)
            yield image

    def look():
        deadline = time.monotonic() + 50
        while time.monotonic() < deadline and sum(r.totals.images for r in read_commits(str(tmp_path / "out"))) < 4:
            time.sleep(0.05)
        found.extend(read_commits(str(tmp_path / "out")))
        back.set()

    monkeypatch.setattr(shard_reader, "read_shard", hanging)
    monkeypatch.setattr("data_engine.pipeline.stall._FIRST_S", 0.2)
    looker = threading.Thread(target=look)
    looker.start()
    with caplog.at_level(logging.WARNING):
        report = generate(str(photos), str(tmp_path / "out"), config)
    looker.join()
    assert sum(record.totals.images for record in found) == 4
    assert "reading image 4 of " in caplog.text
    assert (report.exit_code, report.totals.images) == (0, 6)
    monkeypatch.undo()
    generate(str(photos), str(tmp_path / "whole"), config_for(tiny_model))
    assert rows(tmp_path / "out") == rows(tmp_path / "whole")
