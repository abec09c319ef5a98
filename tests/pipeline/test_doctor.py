"""The doctor looks at a store and leaves it as it was."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_engine.pipeline.doctor import Finding, examine


def of_the_store(output: Path, model: Path, single_writer: bool = False) -> Finding:
    return next(f for f in examine(str(output), str(model), "cpu", single_writer) if f.subject == "store")


@pytest.mark.parametrize("there", [".", "a", "a/b", "a/b/_plan"])
def test_folders_that_were_not_there_are_gone_again(tiny_model, tmp_path, there):
    (tmp_path / there).mkdir(parents=True, exist_ok=True)
    before = sorted(tmp_path.rglob("*"))
    assert of_the_store(tmp_path / "a/b", tiny_model).ok
    assert sorted(tmp_path.rglob("*")) == before


def test_what_is_in_an_output_stays(tiny_model, tmp_path):
    (tmp_path / "_plan").mkdir()
    (tmp_path / "_plan/job.json").write_text("{}")
    assert of_the_store(tmp_path, tiny_model).ok
    assert [path.name for path in tmp_path.rglob("*")] == ["_plan", "job.json"]


def test_a_store_that_refuses_is_named(tiny_model):
    finding = of_the_store(Path("/proc/zz"), tiny_model)
    assert not finding.ok
    assert "/proc/zz" in finding.text


def test_a_single_writer_does_without_conditional_writes(tiny_model, monkeypatch):
    fsspec = pytest.importorskip("fsspec")
    memory = type(fsspec.filesystem("memory"))
    put = memory.pipe_file
    monkeypatch.setattr(memory, "pipe_file", lambda self, path, value, mode="overwrite", **k: put(self, path, value))
    assert not of_the_store("memory://doctor/out", tiny_model).ok
    finding = of_the_store("memory://doctor/out", tiny_model, single_writer=True)
    assert finding.ok
    assert "single writer" in finding.text
