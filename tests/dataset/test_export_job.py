"""Exports as jobs: the same cut in every run, resumed where they stopped, never half a file, never two in one place."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from dataset.exported import IMAGES, OnePicture, build_blobs, export, leave_out, with_masks
from dataset.small_dataset import build, mask_columns, one_slice

from data_engine.dataset.export.coco import Coco
from data_engine.dataset.export.destination import put_stream
from data_engine.dataset.export.filters import MaskFilter
from data_engine.dataset.export.id_maps import IdMaps
from data_engine.dataset.export.job import ExportJob
from data_engine.dataset.export.pieces import cut, span_images
from data_engine.dataset.export.sa1b import Sa1b
from data_engine.dataset.export.webdataset import WebDataset
from data_engine.dataset.export.yolo import YoloSegmentation
from data_engine.dataset.reader import DatasetImage, MaskDataset
from data_engine.errors import UsageError


@pytest.fixture
def dataset(tmp_path, monkeypatch):
    return build_blobs(tmp_path / "masks", monkeypatch)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("images_per_piece", [1, 2, 3, 5, 8, 100])
@pytest.mark.parametrize("limit", [None, 1, 2, 5, 12])
def test_pieces_hold_every_row_once_and_so_many_images(dataset, images_per_piece, limit):
    rows = list(dataset)[:limit]
    pieces = cut(dataset, images_per_piece, limit)
    seen = [[image for span in piece.spans for _, image in span_images(dataset, span)] for piece in pieces]
    assert [image.image_id for piece in seen for image in piece] == [image.image_id for image in rows]
    exported = [sum(len(image) > 0 for image in piece) for piece in seen]
    assert exported[:-1] == [images_per_piece] * (len(pieces) - 1)
    assert exported[-1] <= images_per_piece
    assert [piece.rows for piece in pieces] == [len(piece) for piece in seen]
    first_masks = [1 + sum(len(image) for before in seen[:i] for image in before) for i in range(len(pieces))]
    assert [piece.first_mask for piece in pieces] == first_masks


def test_pieces_of_a_slice_read_their_own_masks_alone(tmp_path, monkeypatch):
    """Of a slice of a thousand images, ten files of tasks are made."""
    monkeypatch.setattr("data_engine.dataset.writer.ROWS_PER_GROUP", 20)
    masks = mask_columns(np.random.default_rng(0), 2)
    record = one_slice(tmp_path / "masks", [(f"{i}.jpg", masks) for i in range(300)])
    there = pq.ParquetFile(tmp_path / "masks" / record.masks.file).num_row_groups
    groups = []
    original = pq.ParquetFile.read_row_group

    def read(self, group, *arguments, **options):
        groups.append(group)
        return original(self, group, *arguments, **options)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", read)
    dataset = MaskDataset(str(tmp_path / "masks"))
    spans = [span for piece in cut(dataset, 75) for span in piece.spans]
    assert sum(1 for span in spans for _ in span_images(dataset, span)) == 300
    assert there == 30
    assert there <= len(groups) <= there + len(spans)


def test_an_empty_dataset_is_one_empty_piece(tmp_path):
    build(tmp_path / "masks", slices=0)
    for format in (Coco(), IdMaps(), YoloSegmentation(), Sa1b(images_per_tar=5)):
        report = export(MaskDataset(str(tmp_path / "masks")), tmp_path / format.name, format)
        assert (report.images, report.files) == (0, 0)


def test_processes_write_the_same_bytes_as_one(dataset, tmp_path):
    format = Sa1b(images_per_tar=3)
    alone = export(dataset, tmp_path / "alone", format)
    counted = []
    job = ExportJob(
        root=dataset.root,
        destination=str(tmp_path / "together"),
        format=format,
        source=OnePicture(),
        workers=2,
    )
    together, _ = job.run(lambda done, total: counted.append((done, total)))
    assert together.to_dict() == alone.to_dict()
    assert contents(tmp_path / "together") == contents(tmp_path / "alone")
    assert counted[0] == (0, 12)
    assert counted[-1] == (12, 12)


def test_an_export_that_broke_off_goes_on_and_ends_up_the_same(dataset, tmp_path):
    format = Sa1b(images_per_tar=2)
    with pytest.raises(RuntimeError):
        export(dataset, tmp_path / "out", format, source=OnePicture(broken="b/0-0.jpg"))
    finished = (tmp_path / "out/sa_000000.tar").stat().st_mtime_ns
    assert not (tmp_path / "out/sa_000002.tar").exists()
    report = export(dataset, tmp_path / "out", format)
    assert report.images == IMAGES
    assert (tmp_path / "out/sa_000000.tar").stat().st_mtime_ns == finished
    export(dataset, tmp_path / "whole", format)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_a_finished_export_is_not_written_again(dataset, tmp_path):
    first = export(dataset, tmp_path / "out", Coco(images_per_file=3))
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("instances*")}
    second = export(dataset, tmp_path / "out", Coco(images_per_file=3))
    assert second.to_dict() == first.to_dict()
    assert {path: path.stat().st_mtime_ns for path in times} == times


def test_going_on_looks_for_no_labels_again(dataset, tmp_path, monkeypatch):
    """Which is a pass over all files of masks."""
    monkeypatch.setattr("data_engine.dataset.export.job.categories_of", lambda dataset: ("cat", "object"))
    export(dataset, tmp_path / "out", Coco(images_per_file=3))
    content = contents(tmp_path / "out")
    assert b'"name": "cat"' in content["instances_00001.json"]
    (tmp_path / "out/_export/000001.json").unlink()
    monkeypatch.setattr("data_engine.dataset.export.job.categories_of", None)
    export(dataset, tmp_path / "out", Coco(images_per_file=3))
    assert contents(tmp_path / "out") == content


def test_files_that_lacked_originals_are_tried_again(dataset, tmp_path):
    format = WebDataset(images_per_tar=3)
    gone = OnePicture(missing=frozenset({"a/0-2.jpg"}))
    assert export(dataset, tmp_path / "out", format, source=gone).missing == 1
    assert export(dataset, tmp_path / "out", format, source=gone).missing == 1
    assert export(dataset, tmp_path / "out", format).missing == 0
    export(dataset, tmp_path / "whole", format)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


_IN_PROCESSES = """
import sys
from dataset.exported import OnePicture
from data_engine.dataset.export.job import ExportJob
from data_engine.dataset.export.webdataset import WebDataset
if __name__ == "__main__":
    format = WebDataset(images_per_tar=1)
    ExportJob(root=sys.argv[1], destination=sys.argv[2], format=format, source=OnePicture(), workers=2).run()
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_a_stopped_export_leaves_no_process_behind(tmp_path, how):
    build(tmp_path / "masks", slices=40)
    (tmp_path / "run.py").write_text(_IN_PROCESSES)
    tests = Path(__file__).parents[1]
    process = subprocess.Popen(
        [sys.executable, str(tmp_path / "run.py"), str(tmp_path / "masks"), str(tmp_path / "out")],
        env={**os.environ, "PYTHONPATH": f"{tests}{os.pathsep}{tests.parent}"},
        stderr=subprocess.PIPE,
    )
    until = time.monotonic() + 60
    while not list((tmp_path / "out").glob("*.tar")) and time.monotonic() < until:
        time.sleep(0.01)
    process.send_signal(how)
    process.communicate(timeout=30)  # its processes have the same pipe: it ends with the last of them
    assert process.returncode != 0
    assert len(list((tmp_path / "out").glob("*.tar"))) < 160


_SLOW_EXPORT = """
import sys, time
from dataset.exported import OnePicture
from data_engine.dataset.export.job import ExportJob
from data_engine.dataset.export.sa1b import Sa1b
from data_engine.dataset.export import destination

copy = destination.shutil.copyfileobj
def slowly(source, target, block):
    for byte in iter(lambda: source.read(512), b""):
        target.write(byte); target.flush(); time.sleep(0.02)
destination.shutil.copyfileobj = slowly
ExportJob(root=sys.argv[1], destination=sys.argv[2], format=Sa1b(images_per_tar=2), source=OnePicture()).run()
"""


def test_a_killed_export_leaves_no_half_file_that_counts(dataset, tmp_path):
    command = [sys.executable, "-c", _SLOW_EXPORT, dataset.root, str(tmp_path / "out")]
    process = subprocess.Popen(command, cwd=Path(__file__).parents[1])
    try:
        until = time.monotonic() + 60
        while not list((tmp_path / "out").glob("sa_000000.tar")) and time.monotonic() < until:
            time.sleep(0.01)
        time.sleep(0.05)  # in the middle of the second
    finally:
        process.kill()
        process.wait()
    assert not (tmp_path / "out/sa_000003.tar").exists()
    export(dataset, tmp_path / "out", Sa1b(images_per_tar=2))
    export(dataset, tmp_path / "whole", Sa1b(images_per_tar=2))
    left = {name: data for name, data in contents(tmp_path / "out").items() if not name.endswith(".tmp")}
    assert left == contents(tmp_path / "whole")


def test_another_export_in_the_same_place_is_refused_with_what_differs(dataset, tmp_path):
    export(dataset, tmp_path / "out", Coco(images_per_file=3))
    for format, options, said in (
        (Coco(images_per_file=4), {}, "images_per_file was 3, is 4"),
        (Coco(images_per_file=3), {"masks": MaskFilter(min_area=5)}, "min_area was None, is 5"),
        (Coco(images_per_file=3), {"limit": 2}, "limit was None, is 2"),
        (IdMaps(), {}, "format was coco, is png"),
    ):
        with pytest.raises(UsageError, match=said) as caught:
            export(dataset, tmp_path / "out", format, **options)
        assert "another DEST" in str(caught.value)


def test_a_dataset_that_has_grown_is_another_export(tmp_path):
    build(tmp_path / "masks", complete=False)
    record = tmp_path / f"masks/_commits/{'b' * 16}-00001.json"
    data = record.read_bytes()
    record.unlink()
    export(MaskDataset(str(tmp_path / "masks")), tmp_path / "out", Coco())
    record.write_bytes(data)
    with pytest.raises(UsageError, match="at 9 images, it has 12 now"):
        export(MaskDataset(str(tmp_path / "masks")), tmp_path / "out", Coco())


def test_a_dataset_is_no_destination(dataset):
    with pytest.raises(UsageError, match="another DEST"):
        export(dataset, dataset.root, YoloSegmentation(with_images=False))
    assert not (Path(dataset.root) / "_export.json").exists()


@pytest.mark.parametrize("damage", ["", "[]", "{"])
def test_a_damaged_state_is_named(dataset, tmp_path, damage):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/_export.json").write_text(damage)
    with pytest.raises(UsageError, match="another DEST"):
        export(dataset, tmp_path / "out", Coco())


def test_duplicates_are_left_out(dataset, tmp_path):
    leave_out(dataset, "v1", ["a/0-2.jpg", "b/1-0.jpg", "b/1-1.jpg"])  # the last of them failed

    def exported(folder, **options):
        export(dataset, tmp_path / folder, Coco(images_per_file=3), **options)
        paths = sorted((tmp_path / folder).glob("instances_*"))
        return [[image["file_name"] for image in json.loads(path.read_text())["images"]] for path in paths]

    assert exported("all") == [
        ["a/0-0.jpg", "a/0-2.jpg", "a/1-0.jpg"],
        ["a/1-2.jpg", "b/0-0.jpg", "b/0-2.jpg"],
        ["b/1-0.jpg", "b/1-2.jpg"],
    ]
    kept = [["a/0-0.jpg", "a/1-0.jpg", "a/1-2.jpg"], ["b/0-0.jpg", "b/0-2.jpg", "b/1-2.jpg"]]
    assert exported("kept", deduplicated=True) == kept
    assert exported("first", deduplicated=True, limit=3) == [["a/0-0.jpg", "a/1-0.jpg"]]  # a/0-1.jpg failed
    leave_out(dataset, "v2", ["a/0-0.jpg"])
    assert exported("kept", deduplicated="v1") == kept
    with pytest.raises(UsageError, match="deduplicated was v1, is v2"):
        exported("kept", deduplicated=True)
    leave_out(dataset, "v3", [])
    assert exported("none", deduplicated=True) == exported("all")


def test_masks_that_are_there_twice_are_left_out_and_the_others_keep_their_numbers(dataset, tmp_path):
    def masks(folder, **options):
        export(dataset, tmp_path / folder, Coco(images_per_file=3), **options)
        files = [json.loads(path.read_text()) for path in sorted((tmp_path / folder).glob("instances_*"))]
        names = {image["id"]: image["file_name"] for file in files for image in file["images"]}
        return {a["id"]: (names[a["image_id"]], a["segmentation"]["counts"]) for f in files for a in f["annotations"]}

    everything = masks("all")
    leave_out(dataset, "v1", [], [("a/0-0.jpg", 1), ("a/0-2.jpg", 0), ("a/0-2.jpg", 3), ("b/1-2.jpg", 2)])
    kept = masks("kept", deduplicated=True)
    assert len(kept) == len(everything) - 4
    assert kept.items() < everything.items()
    first = [number for number, (name, _) in everything.items() if name == "a/0-2.jpg"]
    assert [number for number in first if number not in kept] == [first[0], first[3]]


@pytest.mark.parametrize("format", [Coco(), Sa1b(), WebDataset()], ids=str)
def test_only_formats_that_name_categories_look_for_labels(dataset, tmp_path, monkeypatch, format):
    looked = []
    monkeypatch.setattr("data_engine.dataset.export.job.categories_of", lambda dataset: looked.append(1) or ("object",))
    export(dataset, tmp_path / "out", format)
    assert bool(looked) == format.has_categories


def test_filters_take_masks_of_at_least_the_thresholds(dataset, tmp_path):
    masks = dataset.masks(columns=["predicted_iou", "stability_score", "area"]).to_pylist()
    for name, column in (("min_iou", "predicted_iou"), ("min_stability", "stability_score"), ("min_area", "area")):
        least = sorted(mask[column] for mask in masks)[len(masks) // 2]
        report = export(dataset, tmp_path / name, Coco(), masks=MaskFilter(**{name: least}))
        assert report.masks == sum(mask[column] >= least for mask in masks)
        assert report.images + report.filtered_out == IMAGES


def test_a_score_that_is_the_threshold_passes(dataset, tmp_path):
    """0.95 in float32, as scores are stored, is less than 0.95 in double."""
    scores = [0.95, float(np.nextafter(np.float32(0.95), np.float32(0))), 0.88]
    masks = pa.table(
        {"stability_score": pa.array(scores, pa.float32()), "predicted_iou": pa.array(scores, pa.float32())}
    )
    image = DatasetImage({}, masks)
    for name in ("min_stability", "min_iou"):
        assert [len(MaskFilter(**{name: least}).apply(image)) for least in (0.95, 0.88, 0.96)] == [1, 3, 0]


def test_numbers_of_images_and_masks_do_not_depend_on_filters(dataset, tmp_path):
    def numbers(folder):
        data = json.loads((tmp_path / folder / "instances_00000.json").read_text())
        names = {image["id"]: image["file_name"] for image in data["images"]}
        return {names[a["image_id"]] + a["segmentation"]["counts"]: a["id"] for a in data["annotations"]}

    export(dataset, tmp_path / "all", Coco())
    export(dataset, tmp_path / "some", Coco(), masks=MaskFilter(min_iou=0.9))
    everything = numbers("all")
    assert {key: everything[key] for key in numbers("some")} == numbers("some")


@pytest.mark.parametrize("format", [Coco(images_per_file=3), Sa1b(images_per_tar=3), YoloSegmentation()], ids=str)
def test_an_object_store_gets_the_same_files(dataset, tmp_path, bucket, format):
    export(dataset, tmp_path / "local", format)
    export(dataset, f"{bucket}/out", format)
    again = export(dataset, f"{bucket}/out", format)
    assert again.images == IMAGES
    fs = fsspec.filesystem("s3")
    prefix = f"{bucket.removeprefix('s3://')}/out/"
    assert {name.removeprefix(prefix): fs.cat_file(name) for name in fs.find(prefix)} == contents(tmp_path / "local")


def test_a_large_upload_that_breaks_off_is_not_completed(bucket, monkeypatch):
    class Breaking(io.BytesIO):
        def read(self, size=-1):
            if self.tell() >= 12 << 20:
                raise RuntimeError
            return super().read(size)

    monkeypatch.setattr("data_engine.dataset.export.destination._SINGLE_PUT", 1 << 20)
    with pytest.raises(RuntimeError):
        put_stream(f"{bucket}/broken.tar", Breaking(bytes(20 << 20)))
    put_stream(f"{bucket}/whole.tar", io.BytesIO(bytes(20 << 20)))
    fs = fsspec.filesystem("s3")
    assert [(name.rsplit("/")[-1], fs.info(name)["size"]) for name in fs.find(bucket)] == [("whole.tar", 20 << 20)]


def test_the_images_of_an_export_are_those_with_masks(dataset, tmp_path):
    export(dataset, tmp_path / "out", Coco())
    data = json.loads((tmp_path / "out/instances_00000.json").read_text())
    assert [image["file_name"] for image in data["images"]] == [image.image_id for image in with_masks(dataset)]
