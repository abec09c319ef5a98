"""`data-engine export` on datasets made from real inputs: originals found again, options, output and exit codes."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pipeline.tiny_job import config_for, picture, save_model, write_photos, write_tar
from typer.testing import CliRunner

from data_engine.cli import app
from data_engine.dataset.export.pieces import Span
from data_engine.dataset.reader import MaskDataset
from data_engine.dataset.torch_dataset import MaskImages
from data_engine.errors import UsageError
from data_engine.pipeline.job import generate
from data_engine.pipeline.originals import Originals

IMAGES = 7
FORMATS = [
    "sa1b",
    "coco",
    "coco-polygons",
    "yolo-seg",
    "webdataset",
    "label-studio",
    "huggingface",
    "png",
    "overlays",
]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Datasets by kind of input: a tar of slices of two, a folder, the tar of a Parquet file's images."""
    folder = tmp_path_factory.mktemp("export")
    model = save_model(folder / "tiny.safetensors")
    write_tar(folder / "in.tar", IMAGES, broken=(3,))
    write_photos(folder / "photos", IMAGES)
    outputs = {}
    for kind, source in (("tar", "in.tar"), ("files", "photos")):
        outputs[kind] = str(folder / f"masks-{kind}")
        generate(str(folder / source), outputs[kind], config_for(model, "output.images_per_commit=3"))
    return outputs


def run(*arguments: object):
    result = CliRunner().invoke(app, ["export", *map(str, arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.mark.parametrize("format", FORMATS)
def test_every_format_is_exported_and_found_finished_the_second_time(made, tmp_path, format):
    first = run(made["tar"], tmp_path / "out", "--format", format, "--workers", 1)
    assert first.exit_code == 0
    assert f"out: {IMAGES - 1} images, " in first.stdout
    assert "left out: 1 images that failed when they were masked" in first.stdout
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "out/_export").glob("0*.json")}
    second = run(made["tar"], tmp_path / "out", "--format", format, "--workers", 1)
    assert (second.exit_code, second.stdout) == (0, first.stdout)
    assert {path: path.stat().st_mtime_ns for path in times} == times


@pytest.mark.parametrize("workers", [1, 2])
def test_originals_are_found_in_tars_from_the_middle_of_a_slice(made, tmp_path, workers):
    run(made["tar"], tmp_path, "--format", "webdataset", "--images-per-tar", 2, "--workers", workers)
    found = {}
    for path in sorted(tmp_path.glob("*.tar")):
        with tarfile.open(path) as tar:
            files = {member.name: tar.extractfile(member).read() for member in tar}
        assert len(files) == 4
        found |= {json.loads(files[f"{name[:9]}.json"])["image_id"]: files[name] for name in files if "jpg" in name}
    assert found == {f"in.tar/{i:05d}.jpg": picture(i) for i in range(IMAGES) if i != 3}


@pytest.mark.parametrize("kind", ["tar", "files"])
def test_every_span_of_a_slice_comes_with_its_own_originals(made, kind):
    dataset, originals = MaskDataset(made[kind]), Originals.of_dataset(made[kind])
    whole = {image.image_id: image for image in dataset}
    before = None
    for record in dataset.commits:
        offset = before.next_offset if before is not None and before.shard == record.shard else None
        before = record
        for start in range(record.images.rows):
            for stop in range(start + 1, record.images.rows + 1):
                span = Span(record, start, stop, offset)
                read = list(originals.only([span]).read(dataset, span))
                assert [image.image_id for image, _ in read] == dataset.image_ids(record)[start:stop]
                for image, data in read:
                    failed = image.row["status"] == "failed"
                    number = int(image.image_id[-7:-4])
                    assert data == (b"not a picture" if failed else picture(number))
                    assert image.masks.equals(whole[image.image_id].masks)


def test_changed_and_missing_originals_are_exit_code_3_until_they_are_back(made, tmp_path):
    photos = Path(made["files"]).parent / "photos"
    moved = {photos / name: tmp_path / name for name in ("001.jpg", "004.jpg")}
    for photo, aside in moved.items():
        photo.rename(aside)
    (photos / "001.jpg").write_bytes(picture(99))
    result = run(made["files"], tmp_path / "out", "--format", "sa1b")
    for photo, aside in moved.items():
        aside.rename(photo)
    assert result.exit_code == 3
    assert "left out: 2 images that could not be read again, or have changed since" in result.stdout
    result = run(made["files"], tmp_path / "out", "--format", "sa1b")
    assert result.exit_code == 0
    assert f"out: {IMAGES} images, " in result.stdout


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--format", "coco", "--images-per-tar", "5"], "--format coco takes no --images-per-tar"),
        (["--format", "png", "--images-per-file", "5"], "--format png takes no --images-per-file"),
        (["--format", "sa1b", "--arrays", "--no-images"], "--format sa1b takes no --arrays, --images"),
        (["--format", "label-studio", "--image-url", "http://x"], "image_id"),
        (["--format", "coco", "--dedup-version", "v1"], "--dedup-version needs --deduplicated"),
    ],
)
def test_options_that_mean_nothing_are_refused(made, tmp_path, options, said):
    with pytest.raises(UsageError, match=said):
        run(made["tar"], tmp_path / "out", *options)
    assert not (tmp_path / "out").exists()


def test_filters_and_limit_reach_the_export(made, tmp_path):
    result = run(made["tar"], tmp_path / "a", "--format", "coco", "--min-iou", "1e9", "--limit", 2)
    assert result.stdout.splitlines() == [
        f"{tmp_path}/a: 0 images, 0 masks in 0 files",
        "left out: 2 images that have no masks that pass the filters",
    ]


def test_the_loss_of_polygons_is_printed(made, tmp_path):
    result = run(made["tar"], tmp_path / "a", "--format", "yolo-seg", "--tolerance", "2")
    report = json.loads((tmp_path / "a/loss.json").read_text())
    assert f"mean IoU {report['iou_mean']:.3f}" in result.stdout
    assert f"{report['holes_dropped']:,} holes" in result.stdout


def test_the_torch_dataset_reads_the_originals(made):
    read = {item["image_id"]: item for item in MaskImages(made["tar"], Originals.of_dataset(made["tar"]))}
    assert len(read) == IMAGES - 1
    for name, item in read.items():
        expected = np.asarray(Image.open(io.BytesIO(picture(int(name[-7:-4])))))
        np.testing.assert_array_equal(item["image"].permute(1, 2, 0), expected)
