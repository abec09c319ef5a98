"""Lists, searches and images of a dataset, also while it grows."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pyarrow as pa
import pytest
from viewer.viewed import build, known_masks, write_photos

from data_engine.dataset.reader import MaskDataset
from data_engine.errors import DataEngineError, UsageError
from data_engine.viewer import run as run_module
from data_engine.viewer.byte_cache import ByteCache
from data_engine.viewer.index import SliceIndex, open_part
from data_engine.viewer.order import Query, ordered
from data_engine.viewer.run import ViewedRun


def some_masks(number, height, width):
    return known_masks(number, height, width, count=number % 4)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Eight images in three shards of two slices: 0, 1, 2, 3, 0, 1 and 2 masks, the last image failed."""
    folder = tmp_path_factory.mktemp("run")
    photos = write_photos(folder / "photos", side=64)
    build(folder / "out", str(photos), some_masks, per_commit=2, overrides=("input.images_per_shard=3",))
    return folder / "out"


def listed(run, *, offset=0, limit=100, other=None, around=None, **query):
    while "reading" in (page := run.page(Query(**query), offset, limit, other, around)):
        pass
    return page


def test_lists_agree_with_the_dataset(dataset):
    run, tables = ViewedRun(str(dataset)), MaskDataset(str(dataset))
    rows = {row["image_id"]: row for row in tables.images().to_pylist()}
    masks = tables.masks().to_pylist()
    page = listed(run)
    assert page["id"] == [image.image_id for image in tables]
    for i, image_id in enumerate(page["id"]):
        row, own = rows[image_id], [mask for mask in masks if mask["image_id"] == image_id]
        assert page["masks"][i] == row["n_masks"] == len(own)
        assert page["error"][i] == row["error_type"]
        assert (page["width"][i], page["height"][i]) == (row["width"] or 0, row["height"] or 0)
        if own:
            assert page["stability"][i] == pytest.approx(np.mean([m["stability_score"] for m in own]), abs=1e-4)
            assert page["predicted_iou"][i] == pytest.approx(np.mean([m["predicted_iou"] for m in own]), abs=1e-4)
            shares = [m["area"] / m["width"] / m["height"] for m in own]
            assert page["area"][i] == pytest.approx(np.mean(shares), abs=1e-4)
        else:
            assert page["stability"][i] is page["area"][i] is None
    json.dumps(page, allow_nan=False)


@pytest.mark.parametrize("sort", ["id", "masks", "predicted_iou", "stability", "area"])
@pytest.mark.parametrize("descending", [False, True])
def test_sorts(dataset, sort, descending):
    page = listed(ViewedRun(str(dataset)), sort=sort, descending=descending)
    values = [value for value in page[sort] if value is not None]
    assert values == sorted(values, reverse=descending)
    assert page[sort][: len(values)] == values  # images without a value are last, both ways
    assert sorted(page["id"]) == sorted(listed(ViewedRun(str(dataset)))["id"])


def test_searches_and_states(dataset):
    run = ViewedRun(str(dataset))
    ids = listed(run)["id"]
    assert listed(run, search="O")["id"] == [name for name in ids if "o" in name]
    assert listed(run, search="o  .JPG broken")["id"] == ["zz-broken.jpg"]
    assert listed(run, search="(") == listed(run, search="nothing has this")
    assert listed(run, status="failed")["id"] == ["zz-broken.jpg"]
    assert listed(run, status="masked", sort="id")["id"] == sorted(ids)[:-1]
    with pytest.raises(UsageError, match="sort='size'"):
        Query(sort="size")


def test_accents_are_found_however_they_are_written():
    composed, taken_apart = "caf\u00e9.jpg", "cafe\u0301.jpg"  # as from a keyboard, as on a Mac's disk
    numbers = np.zeros(3, np.int64)
    ids = pa.chunked_array([["a.jpg", composed, taken_apart]])
    images = SliceIndex(ids, pa.chunked_array([[None] * 3], pa.string()), *[numbers] * 6)
    for search in (composed, taken_apart, "CAF\u00c9"):
        assert ordered(images, Query(search=search)).tolist() == [1, 2]


def test_pages_and_the_place_of_an_image(dataset):
    run = ViewedRun(str(dataset))
    whole = listed(run, sort="id")
    for query in ({}, {"sort": "id"}):
        ids = listed(run, **query)["id"]
        assert [i for offset in (0, 3, 6) for i in listed(run, offset=offset, limit=3, **query)["id"]] == ids
        page = listed(run, limit=3, around=ids[4], **query)
        assert (page["rank"], page["offset"], page["id"]) == (4, 3, ids[3:6])
    assert listed(run, around="no such image")["rank"] is None
    assert listed(run, search="broken", around=whole["id"][0])["rank"] is None


def test_the_order_of_the_dataset_reads_only_the_slices_in_sight(dataset):
    run = ViewedRun(str(dataset))
    run.page(Query(), 0, 2)
    assert run.index.progress == (1, len(run.index.records))


def test_an_image_is_found_with_and_without_a_hint(dataset):
    run = ViewedRun(str(dataset))
    ids = listed(run)["id"]
    for position, image_id in enumerate(ids):
        for hint in (None, position, 0, 99):
            assert run.find(image_id, hint)[2] == position
    with pytest.raises(KeyError):
        run.find("no such image")


def test_a_link_to_an_image_reads_only_its_shard(dataset):
    run = ViewedRun(str(dataset))
    last = MaskDataset(str(dataset)).image_ids(run.index.records[-1])[-1]
    run.find(last)
    own = {record.file for record in run.index.records if record.shard == run.index.records[-1].shard}
    assert set(run.index.known) <= own


def test_an_id_that_is_nowhere_is_known_without_reading_masks(dataset):
    run = ViewedRun(str(dataset))
    with pytest.raises(KeyError):
        run.find("no such image")
    assert run.index.progress[0] == 0
    ids = MaskDataset(str(dataset)).images(columns=["image_id"])["image_id"].to_pylist()
    assert run.index.positions(["no such image", *ids[3:5], ids[0]]).tolist() == [0, 3, 4]
    assert run.index.positions([]).tolist() == []


def test_the_next_image_that_is_left_is_found_in_the_slice_that_it_is_in(dataset):
    run = ViewedRun(str(dataset))
    whole = listed(ViewedRun(str(dataset)))
    masked = [i for i, error in enumerate(whole["error"]) if error is None]
    done = frozenset(whole["id"][i] for i in masked[:-1])
    assert run.next_left(None, done) == masked[-1]
    left = [i for i in range(8) if whole["id"][i] not in done]
    assert set(run.index.known) <= {run.index.records[run.index.locate(i)[0]].file for i in left}
    assert run.next_left(masked[-1], done) == masked[-1]
    assert run.next_left(None, done | {whole["id"][masked[-1]]}) is None
    back = done - {whole["id"][masked[1]]}  # somebody has taken it back
    assert run.next_left(masked[0], back) == masked[1]
    assert run.next_left(masked[1], back) == masked[-1]
    assert run.next_left(masked[-1], back) == masked[1]  # round
    assert {run.next_left(None, back, who) for who in "abcdefgh"} <= {masked[1], masked[-1]}


def test_an_image_that_is_clicked_on_is_read_once(dataset, monkeypatch):
    run = ViewedRun(str(dataset))
    image_id = listed(run)["id"][0]
    opened = []
    monkeypatch.setattr(run_module, "open_part", lambda root, part: opened.append(part) or open_part(root, part))
    first = run.image(image_id)
    assert opened
    opened.clear()
    assert run.image(image_id) == first
    assert opened == []


def test_the_masks_of_an_image_are_those_of_the_dataset(dataset):
    run = ViewedRun(str(dataset))
    for image in MaskDataset(str(dataset)):
        shown = run.image(image.image_id)
        assert shown["masks"]["counts"] == image.masks["counts"].to_pylist()
        assert shown["masks"]["area"] == image.masks["area"].to_pylist()
        assert shown["n_masks"] == len(image)
        assert shown["error_message"] == image.row["error_message"]
        json.dumps(shown, allow_nan=False)


def test_a_growing_dataset_is_followed(tmp_path):
    photos = write_photos(tmp_path / "photos", side=64)
    settings = ("input.images_per_shard=3",)
    build(tmp_path / "out", str(photos), some_masks, per_commit=2, shards=0, overrides=settings)
    run = ViewedRun(str(tmp_path / "out"))
    assert (listed(run)["total"], run.complete) == (0, False)
    assert listed(run, sort="masks")["id"] == []
    build(tmp_path / "out", str(photos), some_masks, per_commit=2, shards=2, overrides=settings)
    run.refresh()
    some = listed(run)["id"]
    assert (len(some), run.complete, run.facts()["planned"]) == (6, False, 8)
    build(tmp_path / "out", str(photos), some_masks, per_commit=2, overrides=settings)
    run.refresh()
    assert (listed(run, sort="id")["total"], run.complete) == (8, True)
    assert set(some) < set(listed(run)["id"])


def test_damage_is_said_and_not_waited_for(dataset, tmp_path):
    shutil.copytree(dataset, tmp_path / "out")
    for path in (tmp_path / "out" / "masks").iterdir():
        data = bytearray(path.read_bytes())
        data[4 : len(data) // 2] = bytes(len(data) // 2 - 4)
        path.write_bytes(data)
    run = ViewedRun(str(tmp_path / "out"))
    for _ in range(2):
        with pytest.raises(DataEngineError, match=r"parquet|damaged"):
            listed(run, sort="masks")
    path.unlink()
    with pytest.raises((DataEngineError, FileNotFoundError)):
        listed(ViewedRun(str(tmp_path / "out")), sort="masks")


def test_images_that_differ_most_come_first(dataset, tmp_path):
    run = ViewedRun(str(dataset))
    photos = dataset.parent / "photos"
    (photos.parent / "fewer").mkdir(exist_ok=True)
    for path in sorted(photos.iterdir())[:5]:
        (photos.parent / "fewer" / path.name).write_bytes(path.read_bytes())
    build(tmp_path / "other", str(photos.parent / "fewer"), lambda *size: known_masks(*size, count=2))
    other = ViewedRun(str(tmp_path / "other"))
    page = listed(run, other=other, sort="difference", descending=True)
    theirs = dict(zip(listed(other)["id"], listed(other)["masks"], strict=True))
    differences = [abs(n - theirs[i]) for i, n in zip(page["id"], page["masks"], strict=True) if i in theirs]
    assert differences == sorted(differences, reverse=True)
    assert not set(page["id"][5:]) & set(theirs)  # those of one run alone are last


def test_the_cache_holds_what_was_used_last():
    cache = ByteCache(100)
    for key in "abcd":
        cache.put(key, b"x" * 25)
    assert cache.get("a") == b"x" * 25
    cache.put("e", b"y" * 25)
    assert (cache.get("a"), cache.get("b"), cache.get("e")) == (b"x" * 25, None, b"y" * 25)
    cache.put("e", b"z")
    cache.put("large", b"x" * 26)
    assert (cache.get("e"), cache.get("large")) == (b"z", None)
