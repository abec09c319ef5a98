"""webdataset tars, read by webdataset."""

from __future__ import annotations

import io
import json
import tarfile

import numpy as np
import pytest
from dataset.exported import ROTATED, OnePicture, build_blobs, export, picture, with_masks
from dataset.small_dataset import HEIGHT, WIDTH
from PIL import Image
from pycocotools import mask as coco

from data_engine.dataset.export.webdataset import WebDataset
from data_engine.images.settings import InputSettings
from data_engine.pipeline.pictures import Pictures


@pytest.fixture
def dataset(tmp_path, monkeypatch):
    return build_blobs(tmp_path / "masks", monkeypatch)


def members(path):
    with tarfile.open(path) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar}


@pytest.mark.parametrize("format", ["JPEG", "PNG"])
def test_webdataset_reads_pixels_and_masks(dataset, tmp_path, format):
    wds = pytest.importorskip("webdataset")
    data = picture(format)
    export(dataset, tmp_path / "out", WebDataset(images_per_tar=3, with_arrays=True), source=OnePicture(data))
    tars = sorted(map(str, (tmp_path / "out").glob("*.tar")))
    assert len(tars) == 3
    loaded = wds.WebDataset(tars, shardshuffle=False).decode("rgb8").to_tuple("jpg;png", "json", "masks.npz")
    images = iter(with_masks(dataset))
    for pixels, record, arrays in loaded:
        image = next(images)
        np.testing.assert_array_equal(pixels, np.asarray(Image.open(io.BytesIO(data))))
        assert record["image_id"] == image.image_id
        n, _, width = arrays["shape"]
        masks = np.unpackbits(arrays["masks"], axis=-1, count=width).astype(bool)
        assert (n, len(record["masks"])) == (len(image), len(image))
        for i, mask in enumerate(record["masks"]):
            np.testing.assert_array_equal(coco.decode(mask["segmentation"]), image.mask(i))
            np.testing.assert_array_equal(masks[i], image.mask(i))
    assert next(images, None) is None


def test_originals_are_taken_over_byte_for_byte(dataset, tmp_path):
    for name, data in {"jpg": picture(), "png": picture("PNG"), "rotated": picture(exif=ROTATED)}.items():
        report = export(dataset, tmp_path / name, WebDataset(), source=OnePicture(data))
        assert report.copied == report.images == 8
        files = members(tmp_path / name / "masks-000000.tar")
        assert list(files.values()).count(data) == 8


def test_a_reader_is_told_to_turn_what_exif_turns(dataset, tmp_path):
    data = picture(exif=ROTATED)
    for apply, expected in ((True, 6), (False, 1)):
        decoder = Pictures(InputSettings(apply_orientation=apply))
        export(dataset, tmp_path / str(apply), WebDataset(), source=OnePicture(data, decoder=decoder))
        files = members(tmp_path / str(apply) / "masks-000000.tar")
        records = [json.loads(content) for name, content in files.items() if name.endswith(".json")]
        assert {record["exif_orientation"] for record in records} == {expected}


@pytest.mark.parametrize("format", ["WEBP", "TIFF", "BMP", "GIF"])
def test_other_formats_become_png_without_loss(dataset, tmp_path, format):
    source = OnePicture(picture(format))
    report = export(dataset, tmp_path / "out", WebDataset(), source=source)
    assert (report.images, report.copied) == (8, 0)
    pixels = Image.open(io.BytesIO(members(tmp_path / "out/masks-000000.tar")["000000001.png"]))
    assert pixels.size == (WIDTH, HEIGHT)
    np.testing.assert_array_equal(np.asarray(pixels), source.decoder.decode(source.data))
