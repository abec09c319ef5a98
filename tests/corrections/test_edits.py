"""Edits as they are stored: in any store, one file each, and by versions that can be read again."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from corrections.corrected import edit, mask_facts

from data_engine.corrections.edits import EditBook, EditSession, newest_version
from data_engine.errors import DatasetError


def test_an_edit_comes_back_as_it_was_from_a_store(bucket: str) -> None:
    root = f"{bucket}/masks"
    mask = np.zeros((6, 8), bool)
    mask[2:4, 3:6] = True
    stored = EditSession(root).add(
        edit("replace", 1, mask_id=2, seconds=4.5, image_sha256=b"x" * 32, **mask_facts(mask))
    )
    (found,) = EditBook(root, "f").read()["a.jpg"]
    assert asdict(found) == asdict(stored)
    assert found.target == 2


def test_edits_of_several_writers_come_by_time(tmp_path: Path) -> None:
    first, second = EditSession(str(tmp_path)), EditSession(str(tmp_path))
    second.add(edit("add", 2))
    first.add(edit("delete", 1, mask_id=0))
    second.add(edit("done", 3, image_id="b.jpg"))
    book = EditBook(str(tmp_path), "f")
    assert [each.action for each in book.read()["a.jpg"]] == ["delete", "add"]
    first.add(edit("undo", 4, of="x"))
    assert len(book.read()["a.jpg"]) == 3
    assert len({each.edit_id for each in book.read()["a.jpg"]}) == 3


def test_a_version_stays_what_it_was(tmp_path: Path) -> None:
    root = str(tmp_path)
    assert newest_version(root) is None
    session = EditSession(root)
    session.add(edit("delete", 1, mask_id=0))
    version = newest_version(root)
    session.add(edit("add", 5))
    assert version is not None
    assert newest_version(root) != version
    assert [each.action for each in EditBook(root, "f").read(version)["a.jpg"]] == ["delete"]
    session.add(edit("done", 0))  # of a clock that is behind: it would have been part of it
    with pytest.raises(DatasetError, match="came late or are gone"):
        EditBook(root, "f").read(version)
    with pytest.raises(DatasetError, match="'first' of the corrections"):
        EditBook(root, "f").read("first")


def test_what_is_no_edit_of_this_dataset_is_named(tmp_path: Path) -> None:
    EditSession(str(tmp_path)).add(edit("add", 1))
    (file,) = (tmp_path / "_corrections").iterdir()
    with pytest.raises(DatasetError, match=rf"{file.name} is an edit of another dataset"):
        EditBook(str(tmp_path), "other").read()
    good = file.read_bytes()
    file.write_bytes(good.replace(b"a.jpg", b"b.jpg"))
    with pytest.raises(DatasetError, match=rf"{file.name} does not hold an edit"):
        EditBook(str(tmp_path), "f").read()
    file.write_bytes(good)
    assert list(EditBook(str(tmp_path), "f").read()) == ["a.jpg"]


def test_a_book_reads_each_file_once_and_sees_what_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session, book = EditSession(str(tmp_path)), EditBook(str(tmp_path), "f")
    read: list[str] = []
    read_file = EditBook._read
    monkeypatch.setattr(EditBook, "_read", lambda self, name: read.append(name) or read_file(self, name))
    session.add(edit("delete", 1, mask_id=0))
    assert len(book.read()["a.jpg"]) == 1
    book.add(session.add(edit("delete", 2, mask_id=1)))
    session.add(edit("add", 0))
    assert [each.action for each in book.read()["a.jpg"]] == ["add", "delete", "delete"]
    assert len(read) == 2
    sorted((tmp_path / "_corrections").iterdir())[0].unlink()  # somebody has taken it out by hand
    assert [each.action for each in book.read()["a.jpg"]] == ["delete", "delete"]
