"""Contact sheets: the right images, the right masks on them, only their originals read, and what is missing is said."""

from __future__ import annotations

import base64
import io
import shutil

import numpy as np
import pytest
from PIL import Image

from data_engine.dataset.reader import MaskDataset
from data_engine.pipeline import originals
from data_engine.pipeline.plan import read_plan
from data_engine.report import pictures
from data_engine.report.pictures import draw_pictures
from data_engine.report.sheets import Pick, choose_sheets, locate


def sheets(root, size=3, seed=0):
    dataset = MaskDataset(root)
    with dataset.duckdb() as connection:
        return {sheet.key: sheet.picks for sheet in choose_sheets(connection, size, seed)}


def drawn(root, picks, budget=10**7):
    dataset = MaskDataset(root)
    with dataset.duckdb() as connection:
        places = locate(dataset, connection, {pick.image_id for pick in picks})
    return draw_pictures(dataset, read_plan(str(root)), places, picks, budget)


def test_sheets_are_what_their_names_say(masks_of_tars):
    chosen = sheets(masks_of_tars / "masks")
    dataset = MaskDataset(masks_of_tars / "masks")
    by_count = sorted((len(image), image.image_id) for image in dataset)
    assert [(pick.value, pick.image_id) for pick in chosen["fewest_masks"]] == by_count[:3]
    assert [pick.value for pick in chosen["most_masks"]] == [count for count, _ in by_count[::-1][:3]]
    worst = {image.image_id: min(image.masks["stability_score"].to_pylist()) for image in dataset}
    lowest = sorted((value, image_id) for image_id, value in worst.items())[:3]
    assert [(pick.value, pick.image_id) for pick in chosen["worst_stability"]] == lowest
    for pick in chosen["largest_masks"]:
        image = dataset[pick.image_id]
        assert pick.value == pytest.approx(image.mask(pick.mask_id).mean())
        assert image.masks["area"][pick.mask_id].as_py() == max(image.masks["area"].to_pylist())


def test_the_seed_draws(masks_of_tars):
    root = masks_of_tars / "masks"
    assert sheets(root, seed=1)["random"] == sheets(root, seed=1)["random"]
    assert len({sheets(root, seed=seed)["random"] for seed in range(4)}) > 1


def test_every_original_is_found_wherever_it_is_in_its_tar(masks_of_tars, monkeypatch):
    root = masks_of_tars / "masks"
    ids = [image.image_id for image in MaskDataset(root)]
    read = []
    real = pictures.read_shard
    monkeypatch.setattr(
        pictures, "read_shard", lambda *args, **kw: (read.append(image) or image for image in real(*args, **kw))
    )
    found = drawn(root, [Pick(image_id, 0) for image_id in ids])
    assert [picture.missing for picture in found.values()] == [""] * 10
    read.clear()
    drawn(root, [Pick(ids[4], 0)])
    assert len(read) == 1  # its slice begins with it


def test_a_mask_of_its_own_changes_only_its_pixels(masks_of_folder):
    root = masks_of_folder / "masks"
    image = MaskDataset(root)["a.jpg"]
    index = int(np.argmin(image.masks["area"].to_numpy()))
    found = drawn(root, [Pick("a.jpg", 0, index)])
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(found["a.jpg", index].uri.split(",")[1]))), float)
    original = np.asarray(Image.open(masks_of_folder / "photos/a.jpg"), float)
    assert shown.shape == original.shape  # small pictures are not made larger
    changed = np.abs(shown - original).max(2)
    mask = image.mask(index)
    assert changed[mask].mean() > 20
    assert np.median(changed[~mask]) < 12  # JPEG


def test_originals_that_are_gone_or_changed_are_said(masks_of_folder, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(masks_of_folder, copy)
    plan = read_plan(str(copy / "masks"))
    assert plan is not None
    picks = [Pick("a.jpg", 0), Pick("b.jpg", 0)]
    photo = masks_of_folder / "photos/a.jpg"
    aside = photo.rename(photo.with_suffix(".aside"))  # its time of change counts, too
    try:
        photo.write_bytes((masks_of_folder / "photos/b.jpg").read_bytes())
        found = drawn(copy / "masks", picks)
        photo.unlink()
        gone = drawn(copy / "masks", picks)
    finally:
        aside.rename(photo)
    for pictures_ in (found, gone):
        assert pictures_["a.jpg", None].uri is None
        assert "gone or has changed" in pictures_["a.jpg", None].missing
        assert pictures_["b.jpg", None].uri


def test_the_budget_bounds_the_pictures_as_often_as_they_are_shown(masks_of_folder):
    picks = [Pick("a.jpg", 0), Pick("a.jpg", 0), Pick("b.jpg", 0)]
    found = drawn(masks_of_folder / "masks", picks)
    sizes = {key[0]: len(base64.b64decode(picture.uri.split(",")[1])) for key, picture in found.items()}
    budget = 2 * sizes["a.jpg"] + sizes["b.jpg"]
    assert all(picture.uri for picture in drawn(masks_of_folder / "masks", picks, budget).values())
    less = drawn(masks_of_folder / "masks", picks, budget - 1)
    assert [key[0] for key, picture in less.items() if picture.uri is None] == ["b.jpg"]
    assert "left out" in less["b.jpg", None].missing


def test_the_plan_of_signed_links_is_the_exports_own():
    assert pictures.relinked is originals.relinked
