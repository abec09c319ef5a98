"""Parquet shards and a dataset card, read by `datasets`."""

from __future__ import annotations

import io

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from dataset.exported import ROTATED, OnePicture, build_blobs, export, picture, with_masks
from dataset.small_dataset import HEIGHT, WIDTH
from PIL import Image
from pycocotools import mask as coco

from data_engine.dataset.export.huggingface import HuggingFace
from data_engine.dataset.export.sa1b import Sa1b
from data_engine.images.settings import InputSettings
from data_engine.pipeline.pictures import Pictures


@pytest.fixture
def dataset(tmp_path, monkeypatch):
    return build_blobs(tmp_path / "masks", monkeypatch)


@pytest.fixture
def datasets(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    module = pytest.importorskip("datasets")
    monkeypatch.setattr(module.config, "HF_DATASETS_CACHE", tmp_path / "home")
    return module


def test_datasets_loads_the_folder_with_images_and_masks(dataset, datasets, tmp_path):
    export(dataset, tmp_path / "out", HuggingFace(images_per_file=3))
    assert sorted(path.name for path in (tmp_path / "out/data").iterdir()) == [
        f"train-{i:05d}-of-00003.parquet" for i in range(3)
    ]
    loaded = datasets.load_dataset(str(tmp_path / "out"), split="train", cache_dir=str(tmp_path / "cache"))
    assert isinstance(loaded.features["image"], datasets.Image)
    assert loaded.features["masks"].feature["category"].names == ["object"]
    images = with_masks(dataset)
    assert loaded.num_rows == len(images)
    for row, image in zip(loaded, images, strict=True):
        assert row["image_id"] == image.image_id
        np.testing.assert_array_equal(np.asarray(row["image"]), np.asarray(Image.open(io.BytesIO(picture()))))
        for i, mask in enumerate(row["masks"]):
            size = [row["height"], row["width"]]
            np.testing.assert_array_equal(coco.decode({"size": size, "counts": mask["counts"]}), image.mask(i))
            assert mask["bbox"] == [image.masks[f"bbox_{side}"][i].as_py() for side in "xywh"]


def test_tars_of_sa_1b_load_too(dataset, datasets, tmp_path):
    export(dataset, tmp_path / "out", Sa1b(images_per_tar=3))
    tars = {"train": str(tmp_path / "out/sa_*.tar")}
    loaded = datasets.load_dataset("webdataset", data_files=tars, split="train", cache_dir=str(tmp_path / "cache"))
    assert loaded.num_rows == 8
    for row, image in zip(loaded, with_masks(dataset), strict=True):
        assert row["jpg"].size == (WIDTH, HEIGHT)
        for i, annotation in enumerate(row["json"]["annotations"]):
            np.testing.assert_array_equal(coco.decode(annotation["segmentation"]), image.mask(i))


def test_the_bytes_are_the_originals(dataset, tmp_path):
    export(dataset, tmp_path / "out", HuggingFace())
    table = pq.read_table(tmp_path / "out/data")
    assert {row["bytes"] for row in table["image"].to_pylist()} == {picture()}


@pytest.mark.parametrize("apply", [True, False])
def test_what_exif_turns_is_shown_as_it_was_masked(dataset, datasets, tmp_path, apply):
    data = picture(exif=ROTATED)
    decoder = Pictures(InputSettings(apply_orientation=apply))
    report = export(dataset, tmp_path / "out", HuggingFace(), source=OnePicture(data, decoder=decoder))
    assert report.copied == (8 if apply else 0)
    loaded = datasets.load_dataset(str(tmp_path / "out"), split="train", cache_dir=str(tmp_path / "cache"))
    np.testing.assert_array_equal(np.asarray(loaded[0]["image"]), decoder.decode(data))
    assert loaded[0]["image"].size == ((HEIGHT, WIDTH) if apply else (WIDTH, HEIGHT))


def test_the_card_has_the_figures_and_asks_for_a_licence(dataset, tmp_path):
    report = export(dataset, tmp_path / "out", HuggingFace())
    card = (tmp_path / "out/README.md").read_text()
    front = yaml.safe_load(card.split("---\n")[1])
    assert front["configs"][0]["data_files"] == [{"split": "train", "path": "data/train-*.parquet"}]
    assert front["size_categories"] == ["n<1K"]
    assert "license" not in front
    assert "FILL IN" in card
    assert f"| masks | {report.masks:,} " in card
    assert "4 images that could not be masked" in card
    columns = set(pq.read_schema(tmp_path / "out/data/train-00000-of-00001.parquet").names)
    assert all(f"| {name}" in card or f", {name} " in card for name in columns), columns
