"""A corrected dataset is a dataset: whole by its audit, and what exports, training and measuring read."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from corrections.corrected import Person, mask_facts
from pipeline.tiny_job import write_tar
from typer.testing import CliRunner, Result
from viewer.viewed import build, write_photos

from data_engine.cli import app
from data_engine.corrections.apply import MADE_BY, apply_corrections
from data_engine.corrections.edit_book import newest_version
from data_engine.dataset.reader import MaskDataset
from data_engine.errors import DatasetError, PlanMismatch, UsageError
from data_engine.train.data.labelled import DataFilters, open_training_data


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_photos(tmp_path_factory.mktemp("photos") / "in", side=60)


@pytest.fixture
def masks(photos: Path, tmp_path: Path) -> Path:
    build(tmp_path / "masks", str(photos))
    return tmp_path / "masks"


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def square(dataset: MaskDataset, image_id: str) -> np.ndarray:
    row = dataset[image_id].row
    mask = np.zeros((row["height"], row["width"]), bool)
    mask[5:15, 4:20] = True
    return mask


def correct(masks: Path) -> tuple[list[str], np.ndarray]:
    """Of the first image a mask is replaced and one deleted, of the second one added; the first is done."""
    ada, bob = Person(masks), Person(masks, "Bob")
    first, second = [image.image_id for image in ada.dataset][:2]
    mask = square(ada.dataset, first)
    ada.does("replace", first, mask_id=1, **mask_facts(mask))
    ada.does("delete", first, mask_id=0)
    ada.does("done", first)
    bob.does("add", second, **mask_facts(square(ada.dataset, second)))
    return [first, second], mask


def test_the_result_is_whole_and_has_the_masks_that_stand(masks: Path, tmp_path: Path) -> None:
    (first, second), mask = correct(masks)
    before = {path: path.read_bytes() for path in masks.rglob("*") if path.is_file()}
    done = invoke("apply-corrections", masks, tmp_path / "corrected")
    assert done.exit_code == 0, done.output
    assert "8 images, 35 masks; 2 made by people, 2 of the model's gone" in done.stdout
    assert f"images done: 1; by Ada, Bob; version {newest_version(str(masks))}" in done.stdout
    assert before == {path: path.read_bytes() for path in masks.rglob("*") if path.is_file()}

    audited = invoke("audit", tmp_path / "corrected")
    assert audited.exit_code == 0, audited.output
    was, now = MaskDataset(str(masks)), MaskDataset(str(tmp_path / "corrected"))
    assert [image.row["n_masks"] for image in now] == [4, 6, 5, 5, 5, 5, 5, 0]
    changed = now[first]
    assert changed.masks["mask_id"].to_pylist() == [0, 1, 2, 3]
    assert np.array_equal(changed.mask(0), mask)
    assert [np.array_equal(changed.mask(i), was[first].mask(i + 1)) for i in (1, 2, 3)] == [True] * 3
    person = changed.masks.slice(0, 1).to_pylist()[0]
    assert (person["predicted_iou"], person["stability_score"]) == (1, 1)  # no threshold drops it
    assert (person["point_x"], person["point_y"]) == (2, 4)  # the click on the thing
    for image in was:
        if image.image_id not in (first, second):
            assert now[image.image_id].masks.equals(image.masks)

    made_by = pq.ParquetFile(tmp_path / "corrected" / MADE_BY).read().to_pylist()
    assert [(row["image_id"], row["mask_id"], row["action"], row["who"]) for row in made_by] == [
        (first, 0, "replace", "Ada"),
        (second, 5, "add", "Bob"),
    ]
    assert made_by[0]["predicted_iou"] == 0.25  # what the model thought


def test_a_mask_that_was_only_painted_is_one_like_others(masks: Path, tmp_path: Path) -> None:
    person = Person(masks)
    first = next(iter(person.dataset)).image_id
    mask = square(person.dataset, first)
    unknown = dict.fromkeys(("point_x", "point_y", "point_label", "answer", "model", "model_sha256"))
    unknown |= {"predicted_iou": None, "stability_score": None, "painted": int(mask.sum())}
    person.does("add", first, **{**mask_facts(mask), **unknown})
    apply_corrections(str(masks), str(tmp_path / "corrected"))
    assert invoke("audit", tmp_path / "corrected").exit_code == 0
    row = MaskDataset(str(tmp_path / "corrected"))[first].masks.to_pylist()[-1]
    assert (row["predicted_iou"], row["point_x"], row["point_y"]) == (1, 12, 10)  # the middle of its box


def test_only_what_is_done_is_exported_and_trained_on(masks: Path, photos: Path, tmp_path: Path) -> None:
    (first, _), _ = correct(masks)
    done = invoke("apply-corrections", masks, tmp_path / "done", "--only-done")
    assert done.exit_code == 0, done.output
    assert invoke("audit", tmp_path / "done").exit_code == 0
    exported = invoke("export", tmp_path / "done", tmp_path / "sa1b", "--format", "sa1b", "--workers", "1")
    assert exported.exit_code == 0, exported.output  # the originals are found, too
    (record,) = (tmp_path / "sa1b").glob("sa_*.json")
    assert len(json.loads(record.read_text())["annotations"]) == 4
    data = open_training_data(str(tmp_path / "done"), DataFilters(min_predicted_iou=0.99))
    (image,) = data.epoch(0, seed=0)
    assert (image.image_id, len(image.masks)) == (first, 1)


def test_a_dataset_of_a_tar_that_is_partly_done_finds_its_pictures(tmp_path: Path) -> None:
    write_tar(tmp_path / "in.tar", 7)
    build(tmp_path / "masks", str(tmp_path / "in.tar"))
    person = Person(tmp_path / "masks")
    wanted = [image.image_id for image in person.dataset][4]
    person.does("done", wanted)
    apply_corrections(str(tmp_path / "masks"), str(tmp_path / "done"), only_done=True)
    assert invoke("audit", tmp_path / "done").exit_code == 0
    data = open_training_data(str(tmp_path / "done"), DataFilters())
    assert [image.image_id for image in data.epoch(0, seed=0)] == [wanted]


def test_stopped_it_goes_on_with_the_corrections_that_it_began_with(masks: Path, tmp_path: Path) -> None:
    (first, _), _ = correct(masks)
    destination = str(tmp_path / "corrected")

    def stop(_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        apply_corrections(str(masks), destination, on_slice=stop)
    Person(masks, "Cy", after=60).does("delete", first, mask_id=3)
    Person(masks, "Di", after=-60).does("delete", first, mask_id=4)  # whose clock is behind
    applied = apply_corrections(str(masks), destination)
    assert (applied.totals.masks, applied.people) == (35, ("Ada", "Bob"))
    assert invoke("audit", destination).exit_code == 0
    with pytest.raises(PlanMismatch, match=r"replayed_from\.corrections"):  # it is finished, and there are newer ones
        apply_corrections(str(masks), destination)
    apply_corrections(str(masks), destination, version=applied.version)


def test_corrections_of_a_store(bucket: str, photos: Path, tmp_path: Path) -> None:
    import fsspec

    build(tmp_path / "masks", str(photos))
    fs = fsspec.filesystem("s3")
    fs.put(f"{tmp_path}/masks/", f"{bucket}/masks/", recursive=True)
    correct(Path(tmp_path / "masks"))
    fs.put(f"{tmp_path}/masks/_corrections/", f"{bucket}/masks/_corrections/", recursive=True)
    applied = apply_corrections(f"{bucket}/masks", f"{bucket}/corrected")
    assert (applied.made, applied.gone) == (2, 2)
    assert invoke("audit", f"{bucket}/corrected").exit_code == 0


def test_what_cannot_be_applied_is_said(masks: Path, photos: Path, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="has no corrections: make them on the page /correct"):
        apply_corrections(str(masks), str(tmp_path / "x"))
    person = Person(masks)
    first = next(iter(person.dataset)).image_id
    person.does("delete", first, mask_id=0)
    with pytest.raises(UsageError, match=r"no image of .* is done"):
        apply_corrections(str(masks), str(tmp_path / "x"), only_done=True)
    with pytest.raises(UsageError, match="is the dataset itself"):
        apply_corrections(str(masks), str(masks))
    build(tmp_path / "growing", str(photos), shards=0)
    with pytest.raises(DatasetError, match="is not complete"):
        apply_corrections(str(tmp_path / "growing"), str(tmp_path / "x"))
    build(tmp_path / "other", str(photos), per_commit=2)
    with pytest.raises(PlanMismatch):
        apply_corrections(str(masks), str(tmp_path / "other"))
    assert not (tmp_path / "other" / MADE_BY).exists()
