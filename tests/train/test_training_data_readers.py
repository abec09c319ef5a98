"""Every reader: each image once over any world, its own masks, cheap skips, damage passed over and said."""

from __future__ import annotations

import json
import pickle
import tarfile

import numpy as np
import pytest
from pipeline.tiny_job import config_for, picture, save_model, write_photos
from pipeline.tiny_job import write_tar as write_picture_tar
from train.labelled_folders import (
    HEIGHT,
    WIDTH,
    annotation,
    discs,
    sa1b_files,
    write_coco,
    write_folder,
    write_id_maps,
    write_tar,
)

from data_engine.dataset.reader import MaskDataset
from data_engine.errors import ConfigError, DatasetError, SourceError
from data_engine.masks import rle
from data_engine.pipeline.job import generate
from data_engine.train.data.labelled import DataFilters, open_training_data

KINDS = ("dataset of files", "dataset of tars", "sa1b folder", "sa1b tars", "coco", "idmaps", "scenes", "mixture")


@pytest.fixture(scope="module")
def specs(tmp_path_factory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("labelled")
    model = save_model(root / "model.safetensors")
    config = config_for(model, "output.images_per_commit=3")
    generate(str(write_photos(root / "photos", 7)), str(root / "masks"), config)
    write_picture_tar(root / "tars/a.tar", 5, broken=(2,))
    write_picture_tar(root / "tars/b.tar", 4, first=5)
    generate(str(root / "tars"), str(root / "tar-masks"), config)
    write_folder(root / "sa1b", sa1b_files(range(6)))
    write_tar(root / "sa1b-tars/sa_000000.tar", sa1b_files(range(4)))
    write_tar(root / "sa1b-tars/sa_000001.tar", sa1b_files(range(4, 9)))
    write_coco(root / "coco", 6)
    write_id_maps(root / "idmaps", 5)
    return {
        "dataset of files": f"dataset:{root}/masks",
        "dataset of tars": f"{root}/tar-masks",
        "sa1b folder": f"{root}/sa1b",
        "sa1b tars": f"sa1b:{root}/sa1b-tars/sa_{{000000..000001}}.tar",
        "coco": f"coco:{root}/coco/instances.json@{root}/coco/images",
        "idmaps": f"idmaps:{root}/idmaps/images@{root}/idmaps/segments",
        "scenes": "scenes:9x32",
        "mixture": f"{root}/idmaps + 2*coco:{root}/coco",
    }


def ids(data, **how):
    return [image.image_id for image in data.epoch(how.pop("epoch", 0), seed=how.pop("seed", 1), **how)]


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("mixture", "scenes")])
@pytest.mark.parametrize("world", [2, 11])
def test_every_image_once_over_any_world(specs, kind, world):
    data = open_training_data(specs[kind], DataFilters())
    whole = ids(data)
    assert len(set(whole)) == len(whole) > 0
    parts = [ids(data, rank=rank, world=world) for rank in range(world)]
    assert [image for part in parts for image in part] == whole
    assert sorted(ids(data, epoch=1)) == sorted(whole)
    assert ids(data, epoch=1) != whole


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("mixture", "scenes")])
def test_ids_of_all_entries(specs, kind):
    data = open_training_data(specs[kind], DataFilters())
    found = list(data.image_ids())
    assert len(set(found)) == len(found) == len(data)
    assert set(ids(data)) <= set(found)


@pytest.mark.parametrize("kind", KINDS)
def test_skip_goes_on_where_an_image_was_consumed(specs, kind):
    data = open_training_data(specs[kind], DataFilters())
    for world, rank in ((1, 0), (2, 1)):
        images = list(data.epoch(2, seed=4, rank=rank, world=world))
        for index in sorted({0, len(images) // 2, len(images) - 1}):
            image = images[index]
            rest = list(data.epoch(2, seed=4, rank=rank, world=world, skip=image.consumed))
            assert [i.image_id for i in rest] == [i.image_id for i in images[index + 1 :]]
            assert [i.consumed for i in rest] == [i.consumed for i in images[index + 1 :]]
            for a, b in zip(rest, images[index + 1 :], strict=True):
                assert np.array_equal(a.image, b.image)
                assert [rle.counts_string(m) for m in a.masks] == [rle.counts_string(m) for m in b.masks]


@pytest.mark.parametrize("kind", KINDS)
def test_masks_fit_their_image_and_readers_can_be_sent_to_workers(specs, kind):
    data = pickle.loads(pickle.dumps(open_training_data(specs[kind], DataFilters())))
    for image in data.epoch(0, seed=0):
        assert image.image.dtype == np.uint8
        assert image.image.ndim == 3
        assert image.masks
        for mask in image.masks:
            assert tuple(mask.shape) == image.image.shape[:2]
            assert mask.area() > 0
    json.dumps(data.describe())


def test_a_dataset_gives_the_masks_that_are_stored_filtered_by_their_scores(specs):
    root = specs["dataset of files"].removeprefix("dataset:")
    stored = MaskDataset(root)
    scores = stored.masks(columns=["predicted_iou"])["predicted_iou"].to_numpy()
    threshold = float(np.median(scores))
    data = open_training_data(specs["dataset of files"], DataFilters(min_predicted_iou=threshold))
    for image in data.epoch(0, seed=0):
        rows = stored[image.image_id].masks
        kept = np.flatnonzero(rows["predicted_iou"].to_numpy() >= threshold)
        expected = [rows["counts"][int(i)].as_py() for i in kept]
        assert [rle.counts_string(mask) for mask in image.masks] == expected
    everything = len(list(open_training_data(specs["dataset of files"], DataFilters()).epoch(0, seed=0)))
    assert everything == 7


def test_a_failed_row_is_passed_over_and_counted(specs):
    data = open_training_data(specs["dataset of tars"], DataFilters())
    assert len(data) == 9
    assert len(ids(data)) == 8
    assert sum(data.describe()["passed_over"].values()) == 1


def test_a_photograph_that_changed_is_not_given_old_masks(tmp_path):
    model = save_model(tmp_path / "model.safetensors")
    generate(str(write_photos(tmp_path / "photos", 3)), str(tmp_path / "masks"), config_for(model))
    (tmp_path / "photos/001.jpg").write_bytes(picture(99))
    (tmp_path / "photos/002.jpg").unlink()
    data = open_training_data(str(tmp_path / "masks"), DataFilters())
    assert ids(data) == ["000.jpg"]
    assert sum(data.describe()["passed_over"].values()) == 2


def test_limits_of_area_and_number(specs):
    filters = DataFilters(min_area=30, max_area_fraction=0.1, max_masks_per_image=2)
    data = open_training_data(specs["sa1b folder"], filters)
    seen = 0
    for epoch in range(3):
        for image in data.epoch(epoch, seed=0):
            assert 1 <= len(image.masks) <= 2
            assert all(30 <= mask.area() <= 0.1 * HEIGHT * WIDTH for mask in image.masks)
            seen += 1
    assert seen
    with pytest.raises(ValueError, match="max_area_fraction is 0"):
        DataFilters(max_area_fraction=0)


def test_images_without_masks_are_passed_over_unless_asked_for(tmp_path):
    files = sa1b_files(range(3))
    files["sa_1.json"] = annotation(1, [np.zeros((HEIGHT, WIDTH), bool)])  # an empty mask is no mask
    files["sa_2.json"] = annotation(2, discs(2, 1), [(0.2, 0.9)])
    write_folder(tmp_path, files)
    data = open_training_data(str(tmp_path), DataFilters(min_predicted_iou=0.5))
    assert ids(data) == ["sa_0.jpg"]
    bare = open_training_data(str(tmp_path), DataFilters(min_predicted_iou=0.5, min_masks_per_image=0))
    assert {image.image_id: len(image.masks) for image in bare.epoch(0, seed=0)} == {
        "sa_0.jpg": 1,
        "sa_1.jpg": 0,
        "sa_2.jpg": 0,
    }


def test_data_without_any_mask_that_passes_end_with_a_reason(specs):
    data = open_training_data(specs["sa1b folder"], DataFilters(min_predicted_iou=0.99))
    with pytest.raises(DatasetError, match=r"none of its 6 images can be trained on \(6: no mask that passes"):
        ids(data)


def test_damaged_pairs_are_passed_over_and_said(tmp_path, caplog):
    files = sa1b_files(range(6))
    files["sa_0.jpg"] = files["sa_0.jpg"][:200]
    files["sa_1.json"] = b'{"image": {"height": 48, "width": 72}, "annotations": [{"segmentation": {}}]}'
    bad = json.loads(files["sa_2.json"])
    bad["annotations"][0]["segmentation"]["counts"] = "zzzz"
    files["sa_2.json"] = json.dumps(bad).encode()
    files["sa_3.jpg"] = picture(3, WIDTH + 2, HEIGHT)
    files["sa_9.json"] = files["sa_5.json"]
    numbers = json.loads(files["sa_4.json"])
    numbers["annotations"][0]["segmentation"]["counts"] = [0, HEIGHT * WIDTH]  # COCO has such runs, SA-1B has none
    files["sa_4.json"] = json.dumps(numbers).encode()
    data = open_training_data(str(write_folder(tmp_path, files)), DataFilters())
    assert sorted(ids(data)) == ["sa_5.jpg"]
    assert data.describe()["unpaired"] == 1
    assert data.describe()["passed_over"] == {"truncated": 1, "annotations": 3, "changed": 1}
    assert "sa_0.jpg" in caplog.text


def test_a_cut_tar_is_read_up_to_the_cut(tmp_path, caplog):
    path = write_tar(tmp_path / "sa_000000.tar", sa1b_files(range(5)))
    with tarfile.open(path) as tar:
        cut = tar.getmember("./sa_3.json").offset_data + 10
    path.write_bytes(path.read_bytes()[:cut])
    data = open_training_data(str(path), DataFilters())
    assert sorted(ids(data)) == [f"sa_000000.tar/sa_{i}.jpg" for i in range(3)]
    assert "ends inside a member" in data.describe()["damaged_tars"][0]
    assert "what lies before the damage is used" in caplog.text


def test_data_of_which_nothing_is_whole_end_soon(tmp_path):
    files = {name: b"no picture" if name.endswith("jpg") else data for name, data in sa1b_files(range(60)).items()}
    data = open_training_data(str(write_folder(tmp_path, files)), DataFilters())
    with pytest.raises(SourceError, match="the first 50 images cannot be used"):
        ids(data)


def test_crowds_are_no_masks(specs):
    data = open_training_data(specs["coco"], DataFilters())
    images = list(data.epoch(0, seed=0))
    assert len(images) == 5  # the sixth has only a crowd
    assert all(len(image.masks) == 2 for image in images)


def test_images_without_a_counterpart_are_said(tmp_path, caplog):
    write_coco(tmp_path, 6)
    for number in (0, 1):
        (tmp_path / f"images/{number}.jpg").unlink()
    data = open_training_data(str(tmp_path), DataFilters())
    said = "instances.json: 2 images have no counterpart (a photograph, or masks) and are left out; 3 are there"
    assert said in caplog.text
    assert len(data) == 3  # the sixth has only a crowd


def test_orientation_is_applied(tmp_path):
    from PIL import Image

    files = sa1b_files(range(1))
    upright = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    upright[:, : WIDTH // 2] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # the file is to be turned a quarter
    Image.fromarray(np.rot90(upright)).save(tmp_path / "sa_0.jpg", exif=exif, quality=95)
    (tmp_path / "sa_0.json").write_bytes(files["sa_0.json"])
    (image,) = open_training_data(str(tmp_path), DataFilters()).epoch(0, seed=0)
    assert image.image.shape == (HEIGHT, WIDTH, 3)
    assert image.image[:, : WIDTH // 4].mean() > 250


def test_sa1b_in_a_store(tmp_path):
    import fsspec

    store = fsspec.filesystem("memory")
    files = sa1b_files(range(3))
    for name, data in files.items():
        store.pipe_file(f"/training-data/single/{name}", data)
    store.pipe_file("/training-data/tars/sa_0.tar", write_tar(tmp_path / "sa_0.tar", files).read_bytes())
    single = open_training_data("memory://training-data/single", DataFilters())
    assert sorted(ids(single)) == ["sa_0.jpg", "sa_1.jpg", "sa_2.jpg"]
    tars = open_training_data("memory://training-data/tars/sa_0.tar", DataFilters())
    assert sorted(ids(tars)) == [f"sa_0.tar/sa_{i}.jpg" for i in range(3)]
    store.rm("/training-data", recursive=True)


def test_what_is_skipped_is_not_read(tmp_path):
    write_folder(tmp_path, sa1b_files(range(8)))
    data = open_training_data(str(tmp_path), DataFilters())
    order = ids(data)
    for name in order[:5]:
        (tmp_path / name).write_bytes(b"damaged")
    assert ids(data, skip=5) == order[5:]
    assert not data.describe()["passed_over"]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("photos:here", "unknown kind 'photos'; use one of dataset, sa1b, coco"),
        ("scenes:many", "write scenes:COUNT"),
        ("scenes:0", "at least 1 scene"),
        ("coco:nowhere.json", "nowhere.json: it does not exist"),
        ("idmaps:a@b", "IMAGES@SEGMENTS, of which one does not exist: a and b"),
        ("coco:tests@here@there", "JSON@IMAGES, of which one does not exist"),
        ("coco:tests", "tests has no instances.json; write JSON@IMAGES"),
        ("0*scenes:5 + scenes:5", "write numbers above 0"),
        (" + scenes:5", "name data such as"),
        ("dataset:", "say where it is"),
    ],
)
def test_specifications_that_cannot_be_read(spec, message):
    with pytest.raises(ConfigError, match=message.replace("(", r"\(")):
        open_training_data(spec, DataFilters())


def test_a_folder_that_is_nothing_known(tmp_path):
    write_photos(tmp_path, 2)
    with pytest.raises(ConfigError, match="cannot tell what it is; write the kind before it"):
        open_training_data(str(tmp_path), DataFilters())
    with pytest.raises(DatasetError, match="no dataset at"):
        open_training_data(f"dataset:{tmp_path}", DataFilters())
    with pytest.raises(SourceError, match="no picture"):
        open_training_data(f"sa1b:{tmp_path}", DataFilters())
    with pytest.raises(SourceError, match="cannot be listed: give a folder of photographs"):
        open_training_data(f"idmaps:{next(tmp_path.iterdir())}@{tmp_path}", DataFilters())
