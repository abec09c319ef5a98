"""Sheets: out, through a spreadsheet, and back."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np
import pytest
from human_audit.audited import write

from data_engine.errors import UsageError
from data_engine.human_audit.design import Design
from data_engine.human_audit.new_sample import make_sample
from data_engine.human_audit.sample import Sample
from data_engine.human_audit.sheet import COLUMNS, export_sheet, read_sheet

ODD = ["=1+1.jpg", "-x;y.jpg", "'quoted.jpg", 'a "b",\nc.jpg', "ünï 🦊.jpg"]


@pytest.fixture
def sample(tmp_path: Path) -> Sample:
    images = {name: np.full((2, 2), 0.9, np.float32) for name in ODD}
    return make_sample(write(tmp_path / "masks", images, [ODD]), "first", Design(size=10))


def fill(sheet: Path, cells: dict[int, dict[str, str]], delimiter: str = ",", encoding: str = "utf-8-sig") -> None:
    """As a person would, with a spreadsheet that writes the separator and the mark of its country."""
    rows = list(csv.DictReader(io.StringIO(sheet.read_bytes().decode("utf-8-sig"), newline="")))
    with open(sheet, "w", newline="", encoding=encoding) as file:
        writer = csv.DictWriter(file, COLUMNS, delimiter=delimiter)
        writer.writeheader()
        for number, row in enumerate(rows):
            writer.writerow({**row, **cells.get(number, {})})


@pytest.mark.parametrize(("delimiter", "encoding"), [(",", "utf-8-sig"), (";", "utf-8"), ("\t", "utf-8-sig")])
def test_there_and_back(sample, tmp_path, delimiter, encoding):
    sheet = tmp_path / "sheet.csv"
    export_sheet(sample, str(sheet))
    assert read_sheet(sample, str(sheet), "A") == []
    fill(
        sheet,
        {
            0: {"verdict": "accept", "seconds": "3.5"},
            3: {"verdict": " R ", "reason": "Wrong boundary", "note": 'the "ear", left', "seconds": "2,5"},
            9: {"verdict": "Unsure"},
        },
        delimiter,
        encoding,
    )
    first, second, third = read_sheet(sample, str(sheet), "A")
    assert [first.key, second.key, third.key] == [sample.keys[0], sample.keys[3], sample.keys[9]]
    assert (first.verdict, first.seconds, first.who) == ("accept", 3.5, "A")
    assert (second.verdict, second.reason, second.note, second.seconds) == (
        "reject",
        "wrong_boundary",
        'the "ear", left',
        2.5,
    )
    assert (third.verdict, third.reason, third.note, third.seconds) == ("unsure", None, None, None)


def test_every_odd_name_survives_and_none_is_a_formula(sample, tmp_path):
    sheet = tmp_path / "sheet.csv"
    export_sheet(sample, str(sheet), [f"crops/{number}.jpg" for number in range(10)])
    rows = list(csv.DictReader(io.StringIO(sheet.read_bytes().decode("utf-8-sig"), newline="")))
    assert [row["picture"] for row in rows] == [f"crops/{number}.jpg" for number in range(10)]
    assert not any(cell.startswith(("=", "+", "-", "@")) for row in rows for cell in row.values())
    fill(sheet, {number: {"verdict": "a"} for number in range(10)})
    assert [answer.key for answer in read_sheet(sample, str(sheet), "A")] == sample.keys
    stripped = sheet.read_text(encoding="utf-8-sig").replace(",'", ",")  # some spreadsheets eat the quote
    sheet.write_text(stripped.replace(",quoted", ",'quoted"), encoding="utf-8")
    assert len(read_sheet(sample, str(sheet), "A")) == 10


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ({"verdict": "good"}, r"line \d+: .*verdict 'good': use accept, reject, unsure"),
        ({"verdict": "reject", "reason": "ugly"}, "reason 'ugly': use not_an_object"),
        ({"verdict": "accept", "number": "11"}, "number '11' is not of this sample: it has 1 to 10"),
        ({"verdict": "accept", "mask_id": "7"}, "is it the sheet of another audit"),
        ({"verdict": "accept", "seconds": "long"}, "could not convert"),
    ],
)
def test_mistakes_are_named(sample, tmp_path, cells, message):
    sheet = tmp_path / "sheet.csv"
    export_sheet(sample, str(sheet))
    fill(sheet, {4: cells})
    with pytest.raises(UsageError, match=message):
        read_sheet(sample, str(sheet), "A")


def test_files_that_are_no_sheets(sample, tmp_path):
    other = tmp_path / "other.csv"
    other.write_text("name,verdict\nx,accept\n")
    with pytest.raises(UsageError, match="lacks the columns number, image_id, mask_id"):
        read_sheet(sample, str(other), "A")
    other.write_bytes("größe".encode("latin-1"))
    with pytest.raises(UsageError, match="not UTF-8"):
        read_sheet(sample, str(other), "A")
    other.write_text("")
    with pytest.raises(UsageError, match="lacks the columns"):
        read_sheet(sample, str(other), "A")


@pytest.mark.parametrize("note", ['"half', '"the ear" is missing', "x" * 200_000], ids=["open", "inside", "endless"])
def test_a_row_that_is_no_csv_takes_no_other_answers_with_it(sample, tmp_path, note):
    sheet = tmp_path / "sheet.csv"
    export_sheet(sample, str(sheet))
    fill(sheet, {number: {"verdict": "a", "note": f"note {number}"} for number in range(10)})
    before = sheet.read_text(encoding="utf-8-sig").splitlines()
    line = next(number for number, text in enumerate(before, 1) if "note 5" in text)
    sheet.write_text(sheet.read_text(encoding="utf-8-sig").replace("note 5", note), encoding="utf-8")
    with pytest.raises(UsageError, match=rf"sheet.csv line {line}: .*quotation mark"):
        read_sheet(sample, str(sheet), "A")
