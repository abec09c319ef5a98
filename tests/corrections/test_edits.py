"""Edits as they are stored: in any store, one file each, and by versions that can be read again."""

from __future__ import annotations

from dataclasses import asdict, replace
from datetime import datetime, timedelta, timezone
from pathlib import Path

import numpy as np
import pytest
from corrections.corrected import MONDAY, edit, mask_facts

from data_engine.corrections.edit_book import EditBook, newest_version
from data_engine.corrections.edits import EDITS, EditSession, now_after
from data_engine.dataset.sealed_rows import read_rows
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
    book = EditBook(root, "f")
    assert [each.action for each in book.read(book.names(version))["a.jpg"]] == ["delete"]
    session.add(edit("done", 0))  # of a clock that is behind: it would have been part of it
    with pytest.raises(DatasetError, match="came late or are gone"):
        book.names(version)
    with pytest.raises(DatasetError, match="'first' of the corrections"):
        book.names("first")


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


def test_an_edit_is_never_stamped_before_one_that_was_seen() -> None:
    ahead = replace(edit("add", 1), edited_at=datetime.now(timezone.utc) + timedelta(days=1))
    assert now_after([ahead]) > ahead.edited_at
    assert now_after([edit("add", 1)]) > MONDAY + timedelta(days=1)
    assert now_after([]).tzinfo is not None


def packed(root: Path, count: int = 60) -> list[str]:
    """Edits of two hours, whose packs a book has written, but for the last, which came later. The files' names."""
    session = EditSession(str(root))
    names = [session.add(edit("add", 90 * number, image_id=f"{number % 3}.jpg")).file_name for number in range(count)]
    EditBook(str(root), "f", packs=True).read()
    return [*names, session.add(edit("done", 0, image_id="0.jpg")).file_name]


def test_many_edits_are_read_from_the_packs_of_their_hours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = packed(tmp_path)
    (pack,) = (tmp_path / "_corrections" / "by_hour").iterdir()  # the last hour is not worth one yet
    assert pack.name == "20260302T09.parquet"
    alone: list[str] = []
    read_file = EditBook._read
    monkeypatch.setattr(EditBook, "_read", lambda self, name: alone.append(name) or read_file(self, name))
    found = EditBook(str(tmp_path), "f").read()
    assert sorted(alone) == sorted(names[40:])
    assert len(found["0.jpg"]) == 21
    files = {path.name: path.read_bytes() for path in (tmp_path / "_corrections").glob("*.parquet")}
    for each in (each for edits in found.values() for each in edits):
        assert asdict(each) == read_rows(files[each.file_name], EDITS)[0]


def test_a_pack_says_nothing_that_files_do_not_say(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    names = packed(tmp_path)
    (tmp_path / "_corrections" / names[0]).unlink()  # taken out by hand
    assert len(EditBook(str(tmp_path), "f").read()["0.jpg"]) == 20
    with pytest.raises(DatasetError, match="is an edit of another dataset"):
        EditBook(str(tmp_path), "other").read()
    (pack,) = (tmp_path / "_corrections" / "by_hour").iterdir()
    data = pack.read_bytes()
    for damaged in (data[: len(data) // 2], data.replace(b"0.jpg", b"1.jpg"), b""):
        pack.write_bytes(damaged)
        caplog.clear()
        assert len(EditBook(str(tmp_path), "f").read()["0.jpg"]) == 20
        assert "its edits are read one by one" in caplog.text
    with pytest.raises(DatasetError, match=rf"{names[0]} is gone"):
        EditBook(str(tmp_path), "f").read(names)


def test_what_is_added_while_the_store_lists_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session, book = EditSession(str(tmp_path)), EditBook(str(tmp_path), "f")
    session.add(edit("add", 1))
    list_all = EditBook.names

    def names(self: EditBook, version: str | None = None) -> list[str]:
        listed = list_all(self, version)
        self.add(session.add(edit("add", 2)))
        return listed

    monkeypatch.setattr(EditBook, "names", names)
    assert len(book.read()["a.jpg"]) == 2
    monkeypatch.setattr(EditBook, "names", list_all)
    assert len(book.read()["a.jpg"]) == 2
    assert list(book.changed()) == ["a.jpg"]
    assert book.changed() == {}
