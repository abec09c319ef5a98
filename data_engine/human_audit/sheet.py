"""A sample as a sheet of a spreadsheet, for people who judge elsewhere, and their answers back."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence

from data_engine.errors import UsageError
from data_engine.human_audit.answers import VERDICTS, Answer, checked_person, now
from data_engine.human_audit.sample import Sample
from data_engine.pipeline.commit import put
from data_engine.storage import read_bytes

_ANSWER = ("verdict", "reason", "note", "seconds")
COLUMNS = ("number", "picture", "image_id", "mask_id", "uri", "x", "y", "width", "height", *_ANSWER)
_REQUIRED = ("number", "image_id", "mask_id", "verdict")
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "'")  # a cell that starts so is run by some programs, or loses its quote
_LETTERS = {verdict[0]: verdict for verdict in VERDICTS}
_BOX = ("bbox_x", "bbox_y", "bbox_w", "bbox_h")


def export_sheet(sample: Sample, uri: str, pictures: Sequence[str | None] = ()) -> None:
    """Writes a CSV file with one row a mask and empty answers. pictures: the file of each picture, by position."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, COLUMNS, restval="")
    writer.writeheader()
    for row in sample.masks.select(["position", "image_id", "mask_id", "uri", *_BOX]).to_pylist():
        picture = pictures[row["position"]] if pictures else None
        writer.writerow(
            {
                "number": row["position"] + 1,
                "picture": _guarded(picture or ""),
                "image_id": _guarded(row["image_id"]),
                "mask_id": row["mask_id"],
                "uri": _guarded(row["uri"]),
                **{column: row[name] for column, name in zip(("x", "y", "width", "height"), _BOX, strict=True)},
            }
        )
    put(uri, ("\ufeff" + text.getvalue()).encode())  # with the mark by which spreadsheets know UTF-8


def read_sheet(sample: Sample, uri: str, who: str) -> list[Answer]:
    """The answers of a filled sheet; rows without a verdict are passed over.

    Raises UsageError that names the row for whatever is not an answer to this sample; FileNotFoundError.
    """
    checked_person(who)
    try:
        text = read_bytes(uri).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UsageError(f"{uri} is not UTF-8: save it as CSV UTF-8") from None
    rows = csv.DictReader(io.StringIO(text, newline=""), delimiter=_delimiter(text), strict=True)
    answers, line = [], 1
    try:
        missing = [name for name in _REQUIRED if name not in (rows.fieldnames or [])]
        if missing:
            raise UsageError(f"{uri} lacks the columns {', '.join(missing)}: fill in the sheet that --export wrote")
        line = rows.line_num + 1
        for row in rows:
            where = f"{uri} line {rows.line_num}"
            cells = {name: (value or "").strip() for name, value in row.items() if isinstance(name, str)}
            if cells["verdict"]:
                answers.append(_answer(sample, cells, who, where))
            line = rows.line_num + 1
    except csv.Error as error:  # without it, a quotation mark that is left open would take the rows behind it along
        raise UsageError(f"{uri} line {line}: {error}; is a quotation mark missing, or one too many?") from None
    return answers


def _answer(sample: Sample, cells: Mapping[str, str], who: str, where: str) -> Answer:
    number = cells["number"]
    if not number.isascii() or not number.isdigit() or not 1 <= int(number) <= len(sample.keys):
        raise UsageError(f"{where}: number {number!r} is not of this sample: it has 1 to {len(sample.keys)}")
    image_id, mask_id = sample.keys[int(number) - 1]
    if (_guarded(image_id).strip(), str(mask_id)) != (cells["image_id"], cells["mask_id"]) and (
        image_id.strip(),
        str(mask_id),
    ) != (cells["image_id"], cells["mask_id"]):
        raise UsageError(
            f"{where}: mask {cells['mask_id']} of {cells['image_id']!r} is not number {number} of this sample, "
            f"which is mask {mask_id} of {image_id!r}: is it the sheet of another audit?"
        )
    verdict = cells["verdict"].lower()
    try:
        return Answer(
            image_id=image_id,
            mask_id=mask_id,
            who=who,
            verdict=_LETTERS.get(verdict, verdict),
            reason=_reason(cells.get("reason", "")),
            note=cells.get("note") or None,
            seconds=_seconds(cells.get("seconds", "")),
            answered_at=now(),
        )
    except (UsageError, ValueError) as error:
        raise UsageError(f"{where}: {error}") from None


def _reason(text: str) -> str | None:
    """Its name or its words: "wrong_boundary" or "wrong boundary"."""
    return text.lower().replace(" ", "_") or None


def _seconds(text: str) -> float | None:
    return float(text.replace(",", ".")) if text else None


def _guarded(text: str) -> str:
    """`text` as a cell that no spreadsheet takes for a formula."""
    return f"'{text}" if text.startswith(_FORMULA) else text


def _delimiter(text: str) -> str:
    """Spreadsheets write the separator of their country."""
    heading = text.partition("\n")[0]
    return max(",;\t", key=heading.count)
