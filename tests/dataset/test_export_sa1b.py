"""SA-1B export: what the readers of the published dataset rely on."""

import io
import json
import tarfile

import numpy as np
import pyarrow.parquet as pq
import pytest
from dataset.exported import ROTATED, OnePicture, export, picture
from dataset.small_dataset import HEIGHT, WIDTH, build
from PIL import Image
from pycocotools import mask as coco

from data_engine.dataset.export.sa1b import Sa1b, as_jpeg
from data_engine.dataset.reader import MaskDataset
from data_engine.errors import StorageError
from data_engine.images.decode import is_plain_jpeg as plain

# in the order of an authentic record
SA_1B_KEYS = ["bbox", "area", "segmentation", "predicted_iou", "point_coords", "crop_box", "id", "stability_score"]


def decode(data):
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


@pytest.fixture
def dataset(tmp_path):
    build(tmp_path / "masks")
    return MaskDataset(tmp_path / "masks")


def test_a_folder_has_the_files_and_the_schema_of_sa_1b(dataset, tmp_path):
    report = export(dataset, tmp_path / "out", Sa1b())
    assert (report.images, report.failed, report.files, report.copied) == (8, 4, 16, 8)
    for number in range(1, 9):
        record = json.loads((tmp_path / f"out/sa_{number}.json").read_text())
        assert list(record) == ["image", "annotations"]
        assert record["image"] == {
            "image_id": number,
            "width": WIDTH,
            "height": HEIGHT,
            "file_name": f"sa_{number}.jpg",
        }
        assert (tmp_path / f"out/sa_{number}.jpg").read_bytes() == picture()
        for annotation in record["annotations"]:
            assert {key: type(value) for key, value in annotation.items()} == {
                "bbox": list,
                "area": int,
                "segmentation": dict,
                "predicted_iou": float,
                "point_coords": list,
                "crop_box": list,
                "id": int,
                "stability_score": float,
            }
            assert list(annotation) == list(SA_1B_KEYS)
            assert {type(value) for value in annotation["bbox"]} == {float}
            mask = coco.decode(annotation["segmentation"])
            ys, xs = np.nonzero(mask)
            assert annotation["area"] == mask.sum()
            # SA-1B's own files have w = xmax - xmin
            assert annotation["bbox"] == [xs.min(), ys.min(), xs.max() - xs.min(), ys.max() - ys.min()]


def test_annotation_ids_are_unique_and_numbers_lead_back_to_the_images(dataset, tmp_path):
    export(dataset, tmp_path, Sa1b())
    ids = [
        annotation["id"]
        for number in range(1, 9)
        for annotation in json.loads((tmp_path / f"sa_{number}.json").read_text())["annotations"]
    ]
    assert ids == list(range(1, dataset.totals.masks + 1))
    index = pq.read_table(tmp_path / "index.parquet").to_pylist()
    assert index[0] == {"sa_id": 1, "file": "sa_1.jpg", "image_id": "a/0-0.jpg", "uri": "photos/a/0-0.jpg"}
    assert len(index) == 8


def test_tars_hold_pairs_in_order(dataset, tmp_path):
    report = export(dataset, tmp_path, Sa1b(images_per_tar=3))
    assert report.files == 3
    names = []
    for number in range(3):
        with tarfile.open(tmp_path / f"sa_{number:06d}.tar") as tar:
            names.append(tar.getnames())
    assert [len(tar) for tar in names] == [6, 6, 4]
    assert names[0] == [f"sa_{i}.{kind}" for i in (1, 2, 3) for kind in ("jpg", "json")]
    index = pq.read_table(tmp_path / "index.parquet").to_pylist()
    assert [row["sa_id"] for row in index] == list(range(1, 9))
    assert {row["file"] for row in index} == {f"sa_{number:06d}.tar" for number in range(3)}


def test_originals_that_are_gone_are_counted(dataset, tmp_path):
    report = export(dataset, tmp_path / "out", Sa1b(), source=OnePicture(missing=frozenset({"a/0-0.jpg"})))
    assert (report.images, report.missing) == (7, 1)


def test_a_plain_jpeg_is_taken_over_byte_for_byte():
    data = picture()
    assert as_jpeg(data, decode, plain) == (data, True)


@pytest.mark.parametrize(
    "data",
    [
        picture("PNG"),
        picture(mode="L"),
        picture(exif=ROTATED),
    ],
    ids=["png", "grey", "rotated by EXIF"],
)
def test_anything_else_is_encoded_from_the_pixels_that_were_masked(data):
    jpeg, copied = as_jpeg(data, decode, plain)
    assert not copied
    with Image.open(io.BytesIO(jpeg)) as image:
        assert (image.format, image.mode) == ("JPEG", "RGB")
        assert image.getexif().get(0x0112, 1) == 1
        assert np.abs(np.asarray(image).astype(int) - decode(data)).mean() < 2


def test_originals_above_pillows_own_limit_are_exported(monkeypatch):
    """A job may raise input.max_pixels; what it masked must come out again."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert as_jpeg(picture(), decode, plain) == (picture(), True)
    pixels = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    assert as_jpeg(picture("PNG"), lambda data: pixels, plain)[1] is False


def test_images_that_no_jpeg_can_hold_are_counted(dataset, tmp_path, monkeypatch):
    monkeypatch.setattr("data_engine.dataset.export.sa1b.JPEG_MAX_SIDE", WIDTH - 1)
    report = export(dataset, tmp_path / "out", Sa1b())
    assert (report.images, report.too_large) == (0, 8)


@pytest.mark.parametrize("images_per_tar", [None, 3])
@pytest.mark.parametrize("destination", ["/proc/zz", "a_file", "a_file/below"])
def test_a_destination_that_refuses_is_one_line(dataset, tmp_path, monkeypatch, destination, images_per_tar):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a_file").write_text("")
    with pytest.raises(StorageError, match=destination) as caught:
        export(dataset, destination, Sa1b(images_per_tar=images_per_tar))
    assert len(str(caught.value).splitlines()) == 1


def test_no_room_for_a_tar_in_the_making(dataset, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.TemporaryFile", lambda: open("/dev/full", "r+b", buffering=0))  # noqa: SIM115
    with pytest.raises(StorageError, match=r"No space left.*TMPDIR"):
        export(dataset, tmp_path, Sa1b(images_per_tar=3))
    assert list(tmp_path.glob("*.tar")) == []


def test_an_export_that_breaks_off_leaves_no_half_tar(dataset, tmp_path):
    with pytest.raises(RuntimeError):
        export(dataset, tmp_path / "out", Sa1b(images_per_tar=3), source=OnePicture(broken="a/1-0.jpg"))
    assert list((tmp_path / "out").glob("*.tar*")) == []
