"""`data-engine audit-sample` and `audit-report` as a person meets them."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner
from viewer.viewed import build, known_masks, write_photos

from data_engine.cli import app
from data_engine.errors import DatasetError, UsageError
from data_engine.human_audit.crop import draw_crop, window
from data_engine.masks.rle import counts_string, encode


@pytest.fixture(scope="module")
def masks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fourteen masks of seven photographs, two of which are gone since."""
    folder = tmp_path_factory.mktemp("commands")
    photos = write_photos(folder / "in", broken=False)
    build(folder / "masks", str(photos), lambda number, height, width: known_masks(number, height, width, 7)[5:])
    (photos / "turned.jpg").unlink()
    return folder / "masks"


def run(*arguments: str) -> str:
    """What it prints on stdout. Raises what the command raises."""
    result = CliRunner().invoke(app, arguments, catch_exceptions=False, standalone_mode=False)
    if result.exception is not None:
        raise result.exception
    return result.stdout


def test_from_the_draw_to_the_report(masks, tmp_path):
    output, sheet = str(masks), tmp_path / "sheet.csv"
    assert run("audit-sample", output, "--masks", "12", "--stratify", "iou", "--name", "one").startswith(
        "one: 12 masks drawn at random by iou (equal strata) from 14"
    )
    said = run("audit-sample", output, "--name", "one", "--export", str(sheet), "--pictures", str(tmp_path / "crops"))
    assert f"{sheet}: 12 masks to judge" in said
    rows = list(csv.DictReader(io.StringIO(sheet.read_text("utf-8-sig"))))
    gone = [row for row in rows if row["image_id"] == "turned.jpg"]
    assert gone
    assert f"left out: {len(gone)} pictures" in said
    for number, row in enumerate(rows):
        if row in gone:
            assert row["picture"] == ""
        else:
            assert Image.open(row["picture"]).size[0] > 100
        row |= {"verdict": "reject" if number % 3 == 0 else "accept", "reason": "other" if number % 3 == 0 else ""}
    with sheet.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    assert "12 answers of A" in run("audit-sample", output, "--name", "one", "--import", str(sheet), "--who", "A")
    table = run("audit-report", output, "--name", "one")
    assert "12 of 12 judged" in table
    found = json.loads(run("audit-report", output, "--name", "one", "--json"))
    assert found["answered"] == found["precision"]["decided"] == 12
    assert found["reasons"] == {"other": 4}
    assert found["people"][0]["who"] == "A"
    assert 0 < found["precision"]["low"] < found["precision"]["share"] < found["precision"]["high"] < 1
    assert found == json.loads(run("audit-report", output, "--name", "one", "--json", "--who", "A"))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (["audit-sample", "--masks", "3", "--images", "3"], UsageError, "choose one"),
        (["audit-sample", "--import", "sheet.csv"], UsageError, "--who NAME"),
        (["audit-sample", "--pictures", "crops"], UsageError, "--export"),
        (["audit-sample", "--name", "none", "--export", "sheet.csv"], DatasetError, "no audit named 'none'"),
        (["audit-sample", "--name", "x", "--iou-edges", "0.9;0.95"], UsageError, "commas between"),
        (["audit-sample", "--name", "x", "--images", "2", "--stratify", "iou"], UsageError, "cannot be stratified"),
        (["audit-sample", "--name", "there", "--stratify", "iou"], DatasetError, "size: 5 there, 400 asked for"),
        (["audit-report", "--name", "none"], DatasetError, "data-engine audit-sample draws one"),
    ],
)
def test_mistakes(masks, arguments, error, message):
    run("audit-sample", str(masks), "--name", "there", "--masks", "5")
    with pytest.raises(error, match=message):
        run(arguments[0], str(masks), *arguments[1:])
    assert not (masks / "_audits/x").exists()


def test_a_person_who_has_not_answered(masks):
    run("audit-sample", str(masks), "--images", "2", "--name", "two")
    with pytest.raises(UsageError, match="these have: nobody"):
        run("audit-report", str(masks), "--name", "two", "--who", "B")
    with pytest.raises(UsageError, match="no such file"):
        run("audit-sample", str(masks), "--name", "two", "--import", "/nowhere/sheet.csv", "--who", "B")


def test_a_picture_shows_the_outline_around_the_mask_and_nothing_of_it_beside():
    mask = np.zeros((300, 400), bool)
    mask[100:160, 200:280] = True
    pixels = np.full((300, 400, 3), 128, np.uint8)
    x0, y0, x1, y1 = window((200, 100, 80, 60), 400, 300)
    assert (x0, y0, x1, y1) == (152, 52, 328, 208)
    both = np.asarray(draw_crop(pixels, counts_string(encode(mask)), (200, 100, 80, 60)))
    plain, lined = both[:, :640], both[:, -640:]
    assert (plain == 128).all()
    marked = (lined != 128).any(2)
    scale = 640 / (x1 - x0)
    inside = marked[
        round((103 - y0) * scale) : round((157 - y0) * scale), round((203 - x0) * scale) : round((277 - x0) * scale)
    ]
    assert not inside.any()
    rows, columns = np.flatnonzero(marked.any(1)), np.flatnonzero(marked.any(0))
    assert rows[0] / scale + y0 == pytest.approx(100, abs=1.5)
    assert columns[-1] / scale + x0 == pytest.approx(280, abs=1.5)
    assert window((0, 0, 1, 1), 400, 300) == (0, 0, 33, 33)
