"""Photographs and masks of people in a store: training data and ground truth read as from folders, listed once."""

from __future__ import annotations

import gzip
import json
import re
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import fsspec
import numpy as np
import pytest
import yaml
from integration.fault_proxy import FaultProxy
from pipeline.tiny_job import KEEP_ALL, config_for, save_model
from train.blobs import settings_for
from train.labelled_folders import HEIGHT, WIDTH, discs, sa1b_files, write_coco, write_id_maps, write_tar
from typer.testing import CliRunner

from data_engine.cli import app
from data_engine.errors import ConfigError, SourceError, UsageError
from data_engine.evaluation.layouts import open_ground_truth
from data_engine.masks import rle
from data_engine.pipeline.job import generate
from data_engine.storage import read_bytes
from data_engine.train.data.labelled import DataFilters, TrainingData, open_training_data
from data_engine.train.supervised.log_files import read_lines
from data_engine.train.supervised.settings import DataSettings
from data_engine.train.supervised.stream import ExampleStream, Position
from data_engine.train.supervised.views import ViewMaker

s3fs = pytest.importorskip("s3fs")

IMAGES = 9
LISTINGS = ("GET", "list-type=2")


@dataclass(frozen=True)
class Store:
    """A bucket behind a proxy, and the folder that was copied there."""

    proxy: FaultProxy
    bucket: str
    folder: Path

    def at(self, *places: str) -> list[str]:
        """ "s3:x" and "here:x" as a URL and a path."""
        roots = {"s3": self.bucket, "here": str(self.folder)}
        return [f"{roots[place.partition(':')[0]]}/{place.partition(':')[2]}" for place in places]


@pytest.fixture(scope="module")
def _store(s3_endpoint: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    folder = tmp_path_factory.mktemp("labelled")
    coco = write_coco(folder / "coco", IMAGES)
    (folder / "packed.json.gz").write_bytes(gzip.compress((coco / "instances.json").read_bytes()))
    write_id_maps(folder / "idmaps", IMAGES)
    (folder / "train").mkdir()
    (folder / "train/coco-0.jpg").touch()
    write_tar(folder / "sa1b/sa_0.tar", sa1b_files(range(IMAGES)))
    model = save_model(folder / "tiny.safetensors")
    generate(str(coco / "images"), str(folder / "masks"), config_for(model))
    with pytest.MonkeyPatch.context() as patch, FaultProxy(s3_endpoint) as proxy:
        patch.setenv("AWS_ENDPOINT_URL", proxy.url)
        patch.setenv("AWS_ACCESS_KEY_ID", "testing")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "planted-secret-key-of-the-store")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        s3fs.S3FileSystem.clear_instance_cache()
        bucket = f"s3://labelled-{uuid.uuid4().hex[:12]}"
        store = fsspec.filesystem("s3")
        store.mkdir(bucket)
        for name in ("coco", "idmaps", "train", "sa1b", "masks", "packed.json.gz"):
            store.put(str(folder / name), f"{bucket}/{name}", recursive=True)
        yield Store(proxy, bucket, folder)
        s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def store(_store: Store) -> Iterator[Store]:
    _store.proxy.clear()
    yield _store
    _store.proxy.clear()
    _store.proxy.up()


def contents(data: TrainingData) -> dict[str, tuple]:
    return {
        image.image_id: (image.image.tobytes(), [rle.counts_string(mask) for mask in image.masks])
        for image in data.epoch(0, seed=0)
    }


@pytest.mark.parametrize(
    ("form", "places", "local"),
    [
        ("coco:{}", ["s3:coco"], "coco:{}/coco"),
        ("{}", ["s3:coco"], "coco:{}/coco"),
        ("coco:{}@{}", ["s3:packed.json.gz", "s3:coco/images"], "coco:{}/coco"),
        ("{}@{}", ["here:packed.json.gz", "s3:coco/images"], "coco:{}/coco"),
        ("coco:{}@{}", ["s3:coco/instances.json", "here:coco/images"], "coco:{}/coco"),
        ("idmaps:{}", ["s3:idmaps"], "idmaps:{}/idmaps"),
        ("{}", ["s3:idmaps"], "idmaps:{}/idmaps"),
        ("idmaps:{}@{}", ["here:idmaps/images", "s3:idmaps/segments"], "idmaps:{}/idmaps"),
        ("idmaps:{}@{}", ["s3:idmaps/images", "here:idmaps/segments"], "idmaps:{}/idmaps"),
        ("sa1b:{}", ["s3:sa1b/sa_0.tar"], "sa1b:{}/sa1b/sa_0.tar"),
    ],
)
def test_the_same_images_and_masks_from_a_store(store, form, places, local):
    expected = contents(open_training_data(local.format(store.folder), DataFilters()))
    assert len(expected) >= IMAGES - 1
    data = open_training_data(form.format(*store.at(*places)), DataFilters())
    assert contents(data) == expected
    listings = store.proxy.count(*LISTINGS)
    assert contents(data) == expected  # another epoch
    assert store.proxy.count(*LISTINGS) == listings


@pytest.mark.parametrize(
    ("data", "truth", "local"),
    [
        ("s3:coco", None, ("coco", None)),
        ("s3:coco/images", "here:packed.json.gz", ("coco", None)),
        ("here:coco", "s3:packed.json.gz", ("coco", None)),
        ("s3:idmaps", None, ("idmaps", None)),
        ("here:idmaps/images", "s3:idmaps/segments", ("idmaps", None)),
        ("s3:coco", "s3:masks", ("coco", "masks")),
        ("s3:coco", "here:masks", ("coco", "masks")),
    ],
)
def test_the_same_ground_truth_from_a_store(store, data, truth, local):
    folder, masks = local
    expected = open_ground_truth(str(store.folder / folder), str(store.folder / masks) if masks else None)
    found = open_ground_truth(store.at(data)[0], store.at(truth)[0] if truth else None)
    assert (found.kind, found.without) == (expected.kind, expected.without)
    for mine, other in zip(found.images(), expected.images(), strict=True):
        assert mine.image_id == other.image_id
        assert np.array_equal(mine.pixels, other.pixels)
        for masks_of in ("masks", "crowds"):
            runs = [[rle.counts_string(mask) for mask in getattr(image, masks_of)] for image in (mine, other)]
            assert runs[0] == runs[1]
    left = found.leave_out(f"{store.bucket}/train")
    assert {entry.image_id for entry in found.entries} - {entry.image_id for entry in left.entries} == {"0.jpg"}


def test_images_are_fetched_when_they_are_needed_and_the_annotations_once(store):
    data = open_training_data(f"coco:{store.bucket}/coco", DataFilters())
    maker = ViewMaker(DataSettings(), 3, 0, 64, 32)
    assert store.proxy.count("GET", r"instances\.json") == 1
    assert store.proxy.count("GET", r"\.jpg") == 0
    with closing(ExampleStream(data, maker, seed=0, threads=1).items(Position())) as items:
        next(items)
        assert 1 <= store.proxy.count("GET", r"\.jpg") <= 4  # the one, and what a thread has read ahead
        assert len(list(islice(items, 3 * IMAGES))) == 3 * IMAGES
    assert store.proxy.count("GET", r"instances\.json") == 1


def test_a_store_that_stumbles_is_asked_again(store):
    expected = contents(open_training_data(f"coco:{store.folder}/coco", DataFilters()))
    store.proxy.answer(503, "SlowDown", method="GET", path=r"instances\.json", times=4)
    store.proxy.answer(503, "SlowDown", method="GET", path="list-type=2", times=4)
    store.proxy.truncate(path=r"[25]\.jpg", times=2)
    store.proxy.empty(path=r"3\.jpg", times=1)
    data = open_training_data(f"coco:{store.bucket}/coco", DataFilters())
    assert contents(data) == expected
    assert not data.describe()["passed_over"]
    assert sum(store.proxy.faults.values()) >= 8


def test_what_is_gone_or_damaged_is_passed_over_and_counted(store, caplog):
    fs, root = fsspec.filesystem("s3"), f"{store.bucket}/{uuid.uuid4().hex[:6]}"
    fs.put(f"{store.folder}/coco", f"{root}/coco", recursive=True)
    fs.put(f"{store.folder}/idmaps", f"{root}/idmaps", recursive=True)
    fs.rm(f"{root}/coco/images/0.jpg")  # before it is listed: no counterpart, as in a folder
    coco, maps = (open_training_data(f"{kind}:{root}/{kind}", DataFilters()) for kind in ("coco", "idmaps"))
    assert coco.describe()["images_without_counterpart"] == 1
    fs.rm(f"{root}/coco/images/1.jpg")
    cut = (store.folder / "coco/images/2.jpg").read_bytes()
    fs.pipe(f"{root}/coco/images/2.jpg", cut[:200] + bytes(len(cut) - 200))
    fs.pipe(f"{root}/coco/images/3.jpg", cut)
    fs.rm(f"{root}/idmaps/segments/4.png")
    assert set(contents(coco)) == {f"{number}.jpg" for number in range(4, IMAGES - 1)}
    assert coco.describe()["passed_over"] == {"unreadable": 2, "corrupt": 1}
    assert len(contents(maps)) == IMAGES - 1
    assert maps.describe()["passed_over"] == {"damaged": 1}
    assert re.search(rf"unreadable: passed over, .*: [13]\.jpg: .* \({root}/coco/images/[13]\.jpg\)", caplog.text)
    assert f"{root}/idmaps/segments/4.png cannot be read as PNG (not found)" in caplog.text
    truth = open_ground_truth(f"{root}/coco")
    with pytest.raises(SourceError, match=r"2\.jpg is no picture that can be measured on: .*; replace or remove it"):
        list(truth.images())


def test_what_is_not_there_is_named(store):
    for spec, said in (
        ("coco:{0}/none.json@{0}/coco/images", r"JSON@IMAGES, of which one does not exist: s3://.*/none\.json"),
        ("coco:{0}/coco/instances.json@{0}/none", r"of which one does not exist: s3://[^ ]*/none$"),
        ("coco:{0}/nowhere", "it does not exist"),
        ("coco:{0}/idmaps", r"s3://[^ ]*/idmaps has no instances\.json; write JSON@IMAGES"),
        ("idmaps:{0}/idmaps/images@{0}/none", r"IMAGES@SEGMENTS, of which one does not exist: s3://[^ ]*/none$"),
        ("idmaps:{0}-other@{0}", r"of which one does not exist: s3://[^ ]*-other$"),
    ):
        with pytest.raises(ConfigError, match=said):
            open_training_data(spec.format(store.bucket), DataFilters())
    with pytest.raises(UsageError, match=r"s3://[^ ]*/none is not a folder"):
        open_ground_truth(f"{store.bucket}/none")
    with pytest.raises(UsageError, match=r"no instances\.json and no segments/ beside its images"):
        open_ground_truth(f"{store.bucket}/train")
    with pytest.raises(SourceError, match="is no ground truth: give COCO's JSON"):
        open_ground_truth(f"{store.bucket}/coco", f"{store.bucket}/none")
    with pytest.raises(UsageError, match=r"--leave-out s3://[^ ]*/none: no such folder"):
        open_ground_truth(f"{store.bucket}/coco").leave_out(f"{store.bucket}/none")


def test_objects_in_folders_below_and_beside_others(store):
    """file_name with a folder in it; what else lies there is nobody's photograph."""
    fs, root = fsspec.filesystem("s3"), f"{store.bucket}/{uuid.uuid4().hex[:6]}"
    images = [
        {"id": number, "file_name": f"./{part}/a b#{number}.jpg", "height": HEIGHT, "width": WIDTH}
        for number, part in enumerate(("val", "train/deep"))
    ]
    counts = rle.counts_string(rle.encode(discs(0, 1)[0]))
    annotations = [
        {"id": 1, "image_id": image["id"], "segmentation": {"size": [HEIGHT, WIDTH], "counts": counts}}
        for image in images
    ]
    fs.pipe(f"{root}/instances.json", json.dumps({"images": images, "annotations": annotations}).encode())
    for image in images:
        fs.put(f"{store.folder}/coco/images/{image['id']}.jpg", f"{root}/{image['file_name'][2:]}")
    assert len(contents(open_training_data(f"coco:{root}", DataFilters()))) == 2


def command(store: Store, root: str, *words: str) -> str:
    """stdout: of a process where the data are in the store, else of this one."""
    if root != store.bucket:
        done = CliRunner().invoke(app, words)
        assert done.exit_code == 0, done.output
        return done.output
    process = [sys.executable, "-m", "data_engine.cli", *words]
    ended = subprocess.run(process, capture_output=True, text=True, timeout=240, check=False)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_evaluate_from_a_store_gives_the_figures_of_a_folder(store):
    options = ["--model", str(store.folder / "tiny.safetensors"), "--device", "cpu", "--clicks", "1", "--no-baselines"]
    options += [part for value in KEEP_ALL for part in ("--set", value)]
    results = []
    for root in (store.bucket, str(store.folder)):
        output = f"{root}/figures.json"
        arguments = [f"{root}/coco", "--leave-out", f"{root}/train", "--output", output]
        said = command(store, root, "evaluate", *arguments, *options)
        assert f"{IMAGES - 2} images" in said  # one has no object, one is left out
        result = json.loads(read_bytes(output))
        assert result["data"].pop("ground_truth") == f"{root}/coco/instances.json"
        del result["seconds"]
        results.append(result)
    assert results[0] == results[1]


def test_train_from_a_store_to_the_curve_of_a_folder(store, tmp_path):
    config = tmp_path / "tiny.yaml"
    config.write_text(yaml.safe_dump(settings_for(train={"steps": 2}).model_dump(mode="json")))
    curves = []
    for root in (store.bucket, str(store.folder)):
        output = tmp_path / str(len(curves))
        data = f"coco:{root}/packed.json.gz@{root}/coco/images"
        arguments = ["--data", data, "--validation", f"idmaps:{root}/idmaps", "--output", str(output)]
        command(store, root, "train", "--config", str(config), *arguments)
        curves.append([{**line, "seconds": 0} for line in read_lines(output / "log.jsonl")])
        curves[-1] += read_lines(output / "validation.jsonl")
        assert f"{root}/packed.json.gz" in (output / "card.json").read_text()
    assert curves[0] == curves[1]


def test_a_training_that_waits_for_its_store_can_be_stopped(store, tmp_path):
    config = tmp_path / "tiny.yaml"
    config.write_text(yaml.safe_dump(settings_for(train={"steps": 2}).model_dump(mode="json")))
    arguments = ["--config", str(config), "--data", f"coco:{store.bucket}/coco", "--output", str(tmp_path / "run")]
    store.proxy.answer(503, "SlowDown", method="GET", path=r"\.jpg", times=None)
    process = subprocess.Popen(
        [sys.executable, "-m", "data_engine.cli", "train", *arguments], stderr=subprocess.PIPE, text=True
    )
    until = time.monotonic() + 60
    while store.proxy.count("GET", r"\.jpg") < 2 and time.monotonic() < until:
        time.sleep(0.1)
    asked = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert time.monotonic() - asked < 10
    assert "the same command goes on" in said
