"""The page: whole, offline, the same every time, and safe whatever the data is called."""

from __future__ import annotations

import json
import re
import shutil
from html.parser import HTMLParser

import pytest
from corrections.corrected import Person
from report.conftest import NASTY
from typer.testing import CliRunner

from data_engine.cli import app
from data_engine.corrections.apply import apply_corrections
from data_engine.dataset.reader import MaskDataset
from data_engine.errors import DatasetError
from data_engine.report.charts import nice_ticks
from data_engine.report.page import render
from data_engine.report.run import ReportSettings, look_at, report_json
from data_engine.report.shown import difference, duration, short

VOID = {"meta", "img"}
ATTRIBUTES = {"src", "href", "xlink:href", "srcset", "data", "action", "poster"}


class Checked(HTMLParser):
    """Tags that match, text by tag, and everything that could load or run something."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text = ""
        self.headings: list[str] = []
        self.suspicious: list[str] = []
        self.images = 0
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        if tag not in VOID:
            self.open.append(tag)
        if tag in ("script", "link", "iframe", "object", "embed", "base", "form"):
            self.suspicious.append(tag)
        for name, value in attrs:
            loads = name in ATTRIBUTES and not (tag == "img" and value.startswith("data:image/jpeg;base64,"))
            if name.startswith("on") or loads:
                self.suspicious.append(f"{tag} {name}={value[:60]}")
        self.images += tag == "img"

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data
        if self.open and self.open[-1] == "h2":
            self.headings.append(data)


@pytest.fixture(scope="module")
def one(masks_of_folder):
    side = look_at(str(masks_of_folder / "masks"), ReportSettings(pictures=4))
    return side, render([side], ReportSettings())


def test_nothing_runs_and_nothing_is_loaded(one):
    page = Checked(one[1])
    assert page.suspicious == []
    assert "http://" not in one[1]
    assert "https://" not in one[1]
    assert "@import" not in one[1]
    assert "url(" not in one[1]
    assert page.images > 3


def test_names_from_data_are_text(one):
    page = Checked(one[1])
    assert NASTY in page.text
    assert "broken<b>.jpg" in page.text
    assert "<script>" not in one[1]
    assert "<i>junk" not in one[1]


def test_every_section_is_there(one):
    headings = ["Totals", "What ran", "Distributions", "From candidates to masks", "Failures", "Throughput"]
    assert Checked(one[1]).headings == [*headings, "Pictures", "Settings"]
    assert one[1].count("<svg") == 5


def test_figures_are_those_of_the_dataset(one, masks_of_folder):
    told = json.loads(json.dumps(report_json([one[0]]), allow_nan=False))["datasets"][0]
    dataset = MaskDataset(masks_of_folder / "masks")
    assert told["totals"]["masks"] == dataset.totals.masks
    assert told["distributions"]["area"]["count"] == dataset.totals.masks
    assert told["distributions"]["masks_per_image"]["count"] == 3  # the failed one has no number of masks
    assert told["funnel"][0]["left"] == dataset.totals.candidates
    assert told["funnel"][-1]["left"] == dataset.totals.masks
    (failure,) = told["failures"]
    assert (failure["type"], failure["images"]) == ("not_an_image", 1)
    assert failure["examples"][0]["image_id"] == "broken<b>.jpg"
    assert told["facts"]["model_sha256"] == dataset.plan["model"]["sha256"]
    assert told["runs"][0]["images"] == 4
    assert sum(told["totals"][f"masks_{size}"] for size in ("small", "medium", "large")) == dataset.totals.masks


def test_the_same_dataset_gives_the_same_page(one, masks_of_folder):
    again = look_at(str(masks_of_folder / "masks"), ReportSettings(pictures=4))
    assert render([again], ReportSettings()) == one[1]


def test_two_datasets_side_by_side(one, masks_of_tars):
    other = look_at(str(masks_of_tars / "masks"), ReportSettings(pictures=2))
    page = render([one[0], other], ReportSettings())
    checked = Checked(page)
    assert checked.suspicious == []
    for root in (one[0].figures.root, other.figures.root):
        assert root in checked.text
    images = re.search(r"<th>images</th>(.*?)</tr>", page)
    assert images
    assert re.findall(r"<td[^>]*>([^<]*)</td>", images[1]) == ["4", "10", "−6 (−60.0 %)"]
    assert len(report_json([one[0], other])["datasets"]) == 2


def test_duplicates_are_shown_once_they_are_looked_for(masks_of_tars, tmp_path):
    root = tmp_path / "masks"
    shutil.copytree(masks_of_tars / "masks", root)
    done = CliRunner().invoke(app, ["dedup", str(root), "--threshold", "16"])
    assert done.exit_code == 0, done.output
    side = look_at(str(root), ReportSettings(pictures=0))
    duplicates = MaskDataset(root).duplicates.to_pylist()
    told = side.as_json()["duplicates"]
    assert told["images"] == sum(not row["keep"] for row in duplicates) >= 2
    assert told["images"] == sum(told["reasons"].values())
    assert sum(cluster["images"] for cluster in told["largest"]) == len(duplicates)
    page = Checked(render([side], ReportSettings()))
    assert "Duplicates" in page.headings
    assert "Pictures" not in page.headings
    for row in duplicates:
        assert row["image_id"] in page.text


def test_a_dataset_that_is_empty_so_far(masks_of_folder, tmp_path):
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks/_plan").symlink_to(masks_of_folder / "masks/_plan")
    side = look_at(str(tmp_path / "masks"), ReportSettings())
    page = Checked(render([side], ReportSettings()))
    assert "not complete" in page.text
    json.dumps(report_json([side]), allow_nan=False)
    with pytest.raises(DatasetError, match="no dataset"):
        look_at(str(tmp_path), ReportSettings())


def test_a_file_that_is_gone_is_named(masks_of_tars, tmp_path):
    root = tmp_path / "masks"
    shutil.copytree(masks_of_tars / "masks", root)
    gone = sorted((root / "masks").iterdir())[0]
    gone.unlink()
    with pytest.raises(DatasetError, match=gone.name):
        look_at(str(root), ReportSettings(pictures=0))


def test_the_command_writes_both_files_to_a_store(masks_of_folder, bucket):
    import fsspec

    fs = fsspec.filesystem("s3")
    fs.put(str(masks_of_folder / "masks"), bucket.removeprefix("s3://") + "/masks", recursive=True)
    arguments = ["report", f"{bucket}/masks", f"{bucket}/out/report.html", "--json", f"{bucket}/out/report.json"]
    done = CliRunner().invoke(app, [*arguments, "--against", str(masks_of_folder / "masks"), "--pictures", "1"])
    assert done.exit_code == 0, done.output
    assert "report.html" in done.output
    first, second = json.loads(fs.cat(f"{bucket}/out/report.json"))["datasets"]
    assert first.pop("dataset") != second.pop("dataset")
    assert first == second
    assert Checked(fs.cat(f"{bucket}/out/report.html").decode()).images


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [(0, 5, [0, 1, 2, 3, 4, 5]), (0, 42, [0, 10, 20, 30, 40, 50]), (0.5, 0.77, [0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8])],
)
def test_ticks_are_round(low, high, ticks):
    assert nice_ticks(low, high) == ticks


def test_numbers_are_worded():
    assert (short(1234567), short(0.85), short(20000)) == ("1.235M", "0.85", "20k")
    assert [duration(s) for s in (0.5, 59, 61, 3600, 100_000)] == ["0.5 s", "59 s", "1 min 1 s", "1 h", "1 d 3 h"]
    assert (difference(110, 100), difference(1, 2.0), difference(3, 3)) == ("+10 (+10.0 %)", "−1 (−50.0 %)", "")
    assert (difference("a", "b"), difference("a", "a"), difference(5, 0)) == ("differs", "", "+5")


def test_a_wrong_name_to_compare_with_is_said_before_anything_is_read(masks_of_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("data_engine.report.run.look_at", lambda *_: pytest.fail("it read the first dataset"))
    arguments = ["report", str(masks_of_folder / "masks"), str(tmp_path / "page.html"), "--against", "nowhere"]
    done = CliRunner().invoke(app, arguments)
    assert isinstance(done.exception, DatasetError)
    assert "no dataset at nowhere" in str(done.exception)


def test_a_corrected_dataset_says_what_it_was_made_from(masks_of_folder, one, tmp_path):
    shutil.copytree(masks_of_folder / "masks", tmp_path / "masks")
    Person(tmp_path / "masks").does("done", "a.jpg")
    applied = apply_corrections(str(tmp_path / "masks"), str(tmp_path / "corrected"), only_done=True)
    settings = ReportSettings(pictures=0)
    side = look_at(str(tmp_path / "corrected"), settings)
    text = Checked(render([side], settings)).text
    assert f"masks, as people corrected it (version {applied.version}), only images that are done" in text
    (said,) = report_json([side])["datasets"]
    assert said["facts"]["made_from"]["corrections"] == applied.version
    assert "made from" not in Checked(one[1]).text
