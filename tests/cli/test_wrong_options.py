"""Options that do not go together, or mean nothing, are refused before anything is done."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from data_engine.cli import app
from data_engine.errors import UsageError


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("generate photos masks --calibrate 3", "go with --dry-run"),
        ("generate photos masks --price-per-hour 2", "go with --dry-run"),
        ("generate photos masks --dry-run --price-per-hour 2", "goes with --calibrate"),
        ("bench photos --cluster 1,2", "--cluster needs --scratch"),
        ("bench photos --scratch x --cluster 0,2", "--cluster '0,2': write numbers of workers"),
        ("bench photos --scratch x --cluster one", "--cluster 'one': write numbers of workers"),
    ],
)
def test_options_that_mean_nothing_are_refused(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, arguments.split())
    assert isinstance(done.exception, UsageError)
    assert message in str(done.exception)
    assert list(tmp_path.iterdir()) == []
