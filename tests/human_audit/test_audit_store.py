"""What is stored: one sample a name, answers that nobody overwrites, locally and in S3."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from datetime import datetime, timedelta, timezone
from pathlib import Path

import fsspec
import pytest
from human_audit.audited import judge, random_images, rightly, write

from data_engine.dataset.reader import MaskDataset
from data_engine.errors import DatasetError, UsageError
from data_engine.human_audit.answers import Answer, AnswerBook, AnswerSession, last_answers
from data_engine.human_audit.design import Design
from data_engine.human_audit.new_sample import make_sample
from data_engine.human_audit.sample import audit_names, read_sample

START = datetime(2026, 1, 1, tzinfo=timezone.utc)


@pytest.fixture
def dataset(tmp_path: Path) -> MaskDataset:
    images = random_images(20)
    return write(tmp_path / "masks", images, [list(images)[:12], list(images)[12:]])


def answer(mask_id: int, who: str, verdict: str, at: float = 0, image_id: str = "0001.jpg", **more: object) -> Answer:
    return Answer(
        image_id=image_id,
        mask_id=mask_id,
        who=who,
        verdict=verdict,
        answered_at=START + timedelta(seconds=at),
        **more,  # type: ignore[arg-type]
    )


def test_a_sample_is_read_back_and_drawn_once(dataset):
    assert read_sample(dataset.root, "first") is None
    assert audit_names(dataset.root) == []
    sample = make_sample(dataset, "first", Design(size=9, stratify=("iou",)))
    again = make_sample(dataset, "first", Design(size=9, stratify=("iou",)))
    there = read_sample(dataset.root, "first")
    assert there is not None
    assert there.facts == sample.facts == again.facts
    assert there.masks.equals(sample.masks)
    assert audit_names(dataset.root) == ["first"]


def test_a_name_that_is_taken(dataset, tmp_path):
    make_sample(dataset, "first", Design(size=9))
    with pytest.raises(DatasetError, match=r"size: 9 there, 10 asked for.*another --name"):
        make_sample(dataset, "first", Design(size=10))
    images = random_images(20)
    growing = write(tmp_path / "growing", images, [list(images)[:12]], complete=False)
    make_sample(growing, "first", Design(size=9))
    grown = write(tmp_path / "grown", images, [list(images)[:12], list(images)[12:]])
    (Path(grown.root) / "_audits").symlink_to(Path(growing.root) / "_audits")
    with pytest.raises(DatasetError, match="the dataset has changed"):
        make_sample(grown, "first", Design(size=9))


def test_a_crash_between_the_two_files_is_made_good(dataset):
    sample = make_sample(dataset, "first", Design(size=9))
    path = Path(dataset.root) / "_audits/first/sample.parquet"
    path.unlink()
    with pytest.raises(DatasetError, match="run the audit-sample command"):
        read_sample(dataset.root, "first")
    make_sample(dataset, "first", Design(size=9))
    assert read_sample(dataset.root, "first").masks.equals(sample.masks)
    path.write_bytes(b"PAR1 no")
    with pytest.raises(DatasetError, match="damaged"):
        read_sample(dataset.root, "first")


def test_a_sample_that_another_version_drew_is_not_replaced(dataset):
    make_sample(dataset, "first", Design(size=9))
    folder = Path(dataset.root) / "_audits/first"
    facts = json.loads((folder / "sample.json").read_text())
    (folder / "sample.json").write_text(json.dumps({**facts, "sha256": "0" * 64, "code_version": "0.0.1"}))
    before = (folder / "sample.parquet").read_bytes()
    with pytest.raises(DatasetError, match=r"version 0\.0\.1 of data-engine drew"):
        make_sample(dataset, "first", Design(size=9))
    assert (folder / "sample.parquet").read_bytes() == before


def test_another_sample_under_the_name_is_noticed(dataset):
    make_sample(dataset, "first", Design(size=9))
    make_sample(dataset, "second", Design(size=9, seed=1))
    audits = Path(dataset.root) / "_audits"
    (audits / "first/sample.parquet").write_bytes((audits / "second/sample.parquet").read_bytes())
    with pytest.raises(DatasetError, match="sha256 differs"):
        read_sample(dataset.root, "first")


@pytest.mark.parametrize("name", ["", ".hidden", "a/b", "..", "ü", "x" * 101])
def test_names_that_are_no_folder(dataset, name):
    with pytest.raises(UsageError, match="cannot name an audit"):
        read_sample(dataset.root, name)


def test_people_answer_side_by_side_and_each_answer_is_there_at_once(dataset):
    def work(who: str) -> None:
        session = AnswerSession(dataset.root, "first")
        for number in range(12):
            session.add([answer(number, who, "accept", number)])

    threads = [threading.Thread(target=work, args=(who,)) for who in ("A", "B", "C")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    last = last_answers(AnswerBook(dataset.root, "first").read())
    assert {who: len(given) for who, given in last.items()} == {"A": 12, "B": 12, "C": 12}


def test_the_last_answer_of_a_person_counts(dataset):
    session = AnswerSession(dataset.root, "first")
    session.add([answer(0, "A", "accept", 5), answer(1, "A", "accept", 5)])
    book = AnswerBook(dataset.root, "first")
    assert len(book.read()) == 2
    AnswerSession(dataset.root, "first").add(
        [answer(0, "A", "reject", 9, reason="part_missing", note="ear", seconds=1.5)]
    )
    session.add([answer(0, "A", "unsure", 2)])  # stored later, given earlier: another machine's
    session.add([answer(1, "A", "reject", 5)])  # of the same moment: the later one in its session
    session.add([answer(0, "B", "accept", 99)])
    last = last_answers(book.read())
    found = last["A"]["0001.jpg", 0]
    assert (found.verdict, found.reason, found.note, found.seconds) == ("reject", "part_missing", "ear", 1.5)
    assert last["A"]["0001.jpg", 1].verdict == "reject"
    assert last["B"]["0001.jpg", 0].verdict == "accept"


def test_a_killed_writer_loses_no_answer_that_it_said_was_stored(dataset):
    code = """
import sys
from datetime import datetime, timezone
from data_engine.human_audit.answers import Answer, AnswerSession
session = AnswerSession(sys.argv[1], "first")
for number in range(10**6):
    now = datetime.now(timezone.utc)
    session.add([Answer(image_id="0001.jpg", mask_id=number, who="A", verdict="accept", answered_at=now)])
    print(number, flush=True)
"""
    with subprocess.Popen([sys.executable, "-c", code, dataset.root], stdout=subprocess.PIPE, text=True) as writer:
        said = [int(next(writer.stdout)) for _ in range(20)]
        writer.kill()
        said += [int(line) for line in writer.stdout]
    answers = last_answers(AnswerBook(dataset.root, "first").read())["A"]
    assert {mask_id for _, mask_id in answers} >= set(said)
    assert len(answers) <= len(said) + 1


def test_an_unfinished_write_is_no_answer_and_a_damaged_file_is_named(dataset):
    AnswerSession(dataset.root, "first").add([answer(0, "A", "accept")])
    folder = Path(dataset.root) / "_audits/first/answers"
    (folder / ".x.parquet.12345678.tmp").write_bytes(b"half")
    assert len(AnswerBook(dataset.root, "first").read()) == 1
    (folder / "20260101-x.parquet").write_bytes(b"PAR1 half")
    with pytest.raises(DatasetError, match=r"20260101-x\.parquet does not hold answers"):
        AnswerBook(dataset.root, "first").read()


@pytest.mark.parametrize(
    "wrong",
    [
        {"verdict": "good"},
        {"reason": "ugly"},
        {"note": "x" * 2001},
        {"seconds": -1.0},
        {"seconds": float("nan")},
        {"who": " "},
        {"who": "two\nlines"},
    ],
)
def test_what_is_no_answer_is_refused(wrong):
    with pytest.raises(UsageError):
        answer(0, **{"who": "A", "verdict": "reject", **wrong})


def test_in_s3(bucket, dataset):
    fs = fsspec.filesystem("s3")
    fs.put(dataset.root, f"{bucket}/masks", recursive=True)
    remote = MaskDataset(f"{bucket}/masks")
    sample = make_sample(remote, "first", Design(size=15, stratify=("stability",)))
    assert sample.facts.sha256 == make_sample(dataset, "first", Design(size=15, stratify=("stability",))).facts.sha256
    one, other = AnswerSession(remote.root, "first"), AnswerSession(remote.root, "first")
    for a, b in zip(judge(sample, rightly, "A"), judge(sample, rightly, "B"), strict=True):
        one.add([a])
        other.add([b])
    there = read_sample(remote.root, "first")
    assert there is not None
    assert there.masks.equals(sample.masks)
    assert audit_names(remote.root) == ["first"]
    assert len(AnswerBook(remote.root, "first").read()) == 30
