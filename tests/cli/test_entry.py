"""The last word of a command that was stopped."""

from __future__ import annotations

import sys

import pytest

from data_engine.cli import entry

SIGNED = "https://h/a.tar?id=5&X-Amz-Signature=planted"


def stopped(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    def app(standalone_mode: bool) -> int:
        return entry.STOPPED  # what typer makes of Ctrl-C

    def leave(code: int) -> None:
        raise SystemExit(code)

    monkeypatch.setattr(entry, "app", app)
    monkeypatch.setattr(entry.os, "_exit", leave)
    monkeypatch.setattr(sys, "argv", ["data-engine", *arguments])
    with pytest.raises(SystemExit) as left:
        entry.main()
    assert left.value.code == entry.STOPPED
    return capsys.readouterr().err


def test_what_goes_on_is_told_how_and_without_secrets(monkeypatch, capsys):
    said = stopped(monkeypatch, capsys, "--debug", "export", "masks", "x", "--input", SIGNED)
    assert "the same command goes on:\n  data-engine --debug export masks x --input 'https://h/a.tar?id=5'" in said
    assert "signed, anew" in said
    assert "planted" not in said


def test_what_does_not_go_on_promises_nothing(monkeypatch, capsys):
    assert stopped(monkeypatch, capsys, "evaluate", "photos") == "Stopped.\n"
