"""What a server knows of edits: its own at once, others' soon, and nobody waits long for a store that lists slowly."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from corrections.corrected import edit

from data_engine.corrections.edit_book import EditBook
from data_engine.corrections.edits import Edit, EditSession
from data_engine.errors import DatasetError, StorageError
from data_engine.viewer import known_edits
from data_engine.viewer.known_edits import KnownEdits


@pytest.fixture
def known(tmp_path: Path) -> KnownEdits:
    return KnownEdits(EditBook(str(tmp_path), "f"))


@pytest.fixture
def other(tmp_path: Path) -> EditSession:
    return EditSession(str(tmp_path))


def until(condition: Callable[[], object]) -> None:
    begun = time.monotonic()
    while not condition():
        assert time.monotonic() - begun < 10
        time.sleep(0.01)


def test_what_others_store_is_known_soon(
    known: KnownEdits, other: EditSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    other.add(edit("add", 1, who="Bob"))
    assert len(known.of_image("a.jpg")) == 1
    mine = other.add(edit("done", 2, image_id="b.jpg"))
    known.add(mine)
    assert (known.of_image("b.jpg"), known.done(), known.people()) == ([mine], {"b.jpg"}, {"Ada", "Bob"})
    other.add(edit("done", 3, who="Bob"))
    assert known.done() == {"b.jpg"}  # no store is listed at every request
    monkeypatch.setattr(known_edits, "_LOOK_AGAIN", 0.0)
    until(lambda: known.done() == {"a.jpg", "b.jpg"})
    other.add(edit("undo", 4, image_id="b.jpg", of=mine.edit_id))
    until(lambda: known.done() == {"a.jpg"})


def test_nobody_waits_for_a_store_that_lists_slowly(
    known: KnownEdits, other: EditSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    other.add(edit("add", 1))
    assert len(known.of_image("a.jpg")) == 1
    listed, go_on = EditBook.names, threading.Event()
    monkeypatch.setattr(EditBook, "names", lambda self, version=None: go_on.wait(10) and listed(self, version))
    monkeypatch.setattr(known_edits, "_LOOK_AGAIN", 0.0)
    monkeypatch.setattr(known_edits, "_PATIENCE", 0.2)
    begun = time.monotonic()
    for number in range(5):
        known.add(other.add(edit("delete", 2, mask_id=number)))
        assert len(known.of_image("a.jpg")) == 2 + number
    assert time.monotonic() - begun < 5
    theirs = other.add(edit("add", 3, who="Bob"))
    go_on.set()
    monkeypatch.setattr(known_edits, "_RESTS", 0)
    until(lambda: theirs in known.of_image("a.jpg"))
    assert len(known.of_image("a.jpg")) == 7


def test_edits_that_cannot_be_read_are_said_to_everybody(
    known: KnownEdits, other: EditSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(known_edits, "_LOOK_AGAIN", 0.0)
    stored: Edit = other.add(edit("add", 1))
    file = tmp_path / "_corrections" / stored.file_name
    data = file.read_bytes()
    file.write_bytes(data[:100])
    for _ in range(2):
        with pytest.raises(DatasetError, match=rf"{stored.file_name} does not hold an edit.*move it out of"):
            known.of_image("a.jpg")
    file.write_bytes(data)
    until(lambda: not fails(known))
    monkeypatch.setattr(EditBook, "names", lambda self, version=None: fail())
    until(lambda: fails(known))


def fails(known: KnownEdits) -> bool:
    try:
        return known.of_image("a.jpg") == []
    except (DatasetError, StorageError):
        return True


def fail() -> list[str]:
    raise StorageError("the store is away")
