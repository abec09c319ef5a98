"""Rejects are committed with their slice or not at all."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from pipeline.tiny_job import config_for, rows, write_photos

from data_engine.config import JobConfig
from data_engine.dataset.audit import AuditReport, PlannedCount, audit
from data_engine.dataset.commits import CommitRecord
from data_engine.dataset.reader import MaskDataset
from data_engine.dataset.rejects import keeps_rejects
from data_engine.pipeline import slice_committer
from data_engine.pipeline.job import generate
from data_engine.pipeline.plan import read_plan

SHARE = 0.4


def config(model: Path, share: float = SHARE) -> JobConfig:
    return config_for(model, "output.images_per_commit=2", f"output.keep_rejects={share}")


def audited(output: Path) -> AuditReport:
    plan = read_plan(str(output))
    assert plan is not None
    planned = [PlannedCount(shard.id, shard.images) for shard in plan.shards]
    return audit(MaskDataset(str(output)), planned, plan.fingerprint)


def rejects(output: Path) -> list[dict]:
    found = MaskDataset(str(output)).arrow("rejects").to_table().to_pylist()
    return sorted(found, key=lambda row: (row["image_id"], row["candidate_id"]))


def test_a_share_of_the_images_keeps_them_however_often_the_job_stops(tiny_model: Path, tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos", 7)
    generate(str(photos), str(tmp_path / "whole"), config(tiny_model))
    assert audited(tmp_path / "whole").findings == []
    chosen = {path.name for path in photos.iterdir() if keeps_rejects(path.name, SHARE)}
    assert 0 < len(chosen) < 7
    assert {row["image_id"] for row in rejects(tmp_path / "whole")} == chosen
    records = MaskDataset(str(tmp_path / "whole")).commits
    assert {record.rejects is None for record in records} == {True, False}

    generate(str(photos), str(tmp_path / "again"), config(tiny_model))
    for name in ("_manifest.json", records[-1].file):  # as if it had been stopped before the last slice
        (tmp_path / "again" / name).unlink()
    generate(str(photos), str(tmp_path / "again"), config(tiny_model))
    assert rejects(tmp_path / "again") == rejects(tmp_path / "whole")
    assert rows(tmp_path / "again") == rows(tmp_path / "whole")
    assert audited(tmp_path / "again").findings == []


def test_whoever_loses_a_slice_takes_its_rejects_back(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos, output = write_photos(tmp_path / "photos", 3), tmp_path / "out"
    put_if_absent = slice_committer.put_if_absent

    def after_another(uri: str, data: bytes, single_writer: bool = False) -> bool:
        """Another process commits every slice first, with files of its own."""
        record = CommitRecord.from_json(data, uri)
        copies = {}
        for table in ("images", "masks", "rejects"):
            part = getattr(record, table)
            if part is not None:
                file = part.file.replace(record.attempt, "another")
                (output / file).write_bytes((output / part.file).read_bytes())
                copies[table] = replace(part, file=file)
        assert put_if_absent(uri, replace(record, owner="another", **copies).to_json(), single_writer)
        return put_if_absent(uri, data, single_writer)

    monkeypatch.setattr(slice_committer, "put_if_absent", after_another)
    assert generate(str(photos), str(output), config(tiny_model, share=1)).complete
    report = audited(output)
    assert (report.findings, report.unreferenced) == ([], 0)
    assert len(list((output / "rejects").iterdir())) == 2


def test_nothing_is_kept_unless_asked_for(tiny_model: Path, tmp_path: Path) -> None:
    generate(str(write_photos(tmp_path / "photos", 2)), str(tmp_path / "out"), config(tiny_model, share=0))
    assert not (tmp_path / "out" / "rejects").exists()
    assert rejects(tmp_path / "out") == []
