"""Any number of threads loads the same examples in the same order, and none of it is work of the one that trains."""

from __future__ import annotations

import json
import threading
from contextlib import closing
from itertools import islice
from pathlib import Path

import pytest
import torch
from pipeline.tiny_job import config_for, save_model, write_tar
from safetensors.torch import load_file
from train.blobs import settings_for
from train.labelled_folders import annotation, discs, sa1b_files, write_coco, write_folder, write_id_maps
from train.labelled_folders import write_tar as write_sa1b_tar

from data_engine.errors import DatasetError, SourceError
from data_engine.pipeline.job import generate
from data_engine.train.data.labelled import DataFilters, open_training_data
from data_engine.train.data.pool import Pool
from data_engine.train.supervised.log_files import read_lines
from data_engine.train.supervised.run import Sources, train
from data_engine.train.supervised.settings import DataSettings
from data_engine.train.supervised.stream import ExampleStream, Position
from data_engine.train.supervised.views import ViewMaker

THREADS = (1, 2, 7)


@pytest.fixture(scope="module")
def specs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Every kind of data, each with an image or a mask that is damaged."""
    root = tmp_path_factory.mktemp("loader")
    coco = write_coco(root / "coco", 7)
    (coco / "images/1.jpg").write_bytes((coco / "images/1.jpg").read_bytes()[:300])
    maps = write_id_maps(root / "idmaps", 6)
    (maps / "segments/2.png").write_bytes(b"\x89PNG cut")
    files = sa1b_files(range(7))
    files["sa_3.json"] = b"{}"
    write_folder(root / "sa1b", files)
    files["sa_4.json"] = annotation(4, discs(4, 1), [(0.1, 0.1)])
    write_sa1b_tar(root / "sa1b-tars/sa_0.tar", files)
    write_tar(root / "photos/a.tar", 6, broken=(2,))
    model = save_model(root / "model.safetensors")
    generate(str(root / "photos"), str(root / "masks"), config_for(model, "output.images_per_commit=4"))
    return {
        "coco": f"coco:{coco}",
        "idmaps": f"idmaps:{maps}",
        "sa1b": f"sa1b:{root}/sa1b",
        "sa1b tars": f"sa1b:{root}/sa1b-tars",
        "dataset": f"dataset:{root}/masks",
        "scenes": "scenes:9x48",
        "mixture": f"2*coco:{coco} + idmaps:{maps} + sa1b:{root}/sa1b-tars",
    }


def loaded(spec: str, threads: int, count: int, start: Position = Position()) -> tuple[list, dict]:  # noqa: B008
    """What a training sees of the first `count` examples, and what was passed over for them."""
    data = open_training_data(spec, DataFilters(min_predicted_iou=-99))
    maker = ViewMaker(DataSettings(jitter=(0.6, 1.5)), 3, 0, 64, 32)
    seen = []
    with closing(ExampleStream(data, maker, seed=3, threads=threads).items(start)) as items:
        for item in islice(items, count):
            example = item.example
            arrays = example.pixels.numpy().tobytes(), example.targets.numpy().tobytes()
            seen.append((example.image_id, *arrays, example.seed, item.position, item.passed_over))
    return seen, data.describe()


@pytest.mark.parametrize("kind", ["coco", "idmaps", "sa1b", "sa1b tars", "dataset", "scenes", "mixture"])
def test_the_same_examples_and_counts_with_any_number_of_threads(specs, kind):
    count = 17 if kind != "mixture" else 40
    one, *others = (loaded(specs[kind], threads, count) for threads in THREADS)
    assert all(other == one for other in others)
    if kind not in ("scenes", "mixture"):
        assert sum(one[1]["passed_over"].values()) >= 2
    middle = one[0][6][4]
    for threads in THREADS:
        assert loaded(specs[kind], threads, 5, middle)[0] == one[0][7:12]


def test_the_same_weights_and_card_with_any_number_of_threads(specs, tmp_path):
    found = []
    for threads in (1, 5):
        settings = settings_for(run={"loader_threads": threads, "pictures": 0})
        sources = Sources(*(open_training_data(specs[kind], DataFilters()) for kind in ("mixture", "idmaps")))
        output = tmp_path / str(threads)
        weights = load_file(train(settings, sources, output))
        log = [{**line, "seconds": 0} for line in read_lines(output / "log.jsonl")]
        card = json.loads((output / "card.json").read_text())
        found.append((log, read_lines(output / "validation.jsonl"), card["data"], weights))
    for log, validation, data, weights in found[1:]:
        assert (log, validation, data) == found[0][:3]
        assert all(torch.equal(weights[name], tensor) for name, tensor in found[0][3].items())


def test_no_image_is_decoded_by_the_thread_that_trains(specs, tmp_path, monkeypatch):
    threads = set()
    labelled = Pool._labelled

    def seen(self, *arguments):
        threads.add(threading.current_thread())
        return labelled(self, *arguments)

    monkeypatch.setattr(Pool, "_labelled", seen)
    sources = Sources(*(open_training_data(specs[kind], DataFilters()) for kind in ("coco", "idmaps")))
    train(settings_for(train={"steps": 2}), sources, tmp_path)
    assert threads
    assert threading.current_thread() not in threads


def test_data_that_cannot_be_trained_on_end_with_the_reason_whatever_is_read_ahead(specs, tmp_path):
    strict = open_training_data(specs["sa1b"], DataFilters(min_predicted_iou=0.99))
    with pytest.raises(DatasetError, match=r"none of its 7 images can be trained on \(.*6: no mask that passes"):
        train(settings_for(run={"loader_threads": 7}), Sources(strict), tmp_path / "filters")
    broken = {name: b"no picture" if name.endswith("jpg") else data for name, data in sa1b_files(range(60)).items()}
    data = open_training_data(str(write_folder(tmp_path / "broken", broken)), DataFilters())
    with pytest.raises(SourceError, match="the first 50 images cannot be used"):
        train(settings_for(run={"loader_threads": 7}), Sources(data), tmp_path / "damage")
    assert data.describe()["passed_over"] == {"not_an_image": 50}


def test_a_rank_of_many_without_masks_says_so_after_its_epoch(tmp_path: Path) -> None:
    files = sa1b_files(range(6))
    data = open_training_data(str(write_folder(tmp_path, files)), DataFilters(min_predicted_iou=0.99))
    maker = ViewMaker(DataSettings(), 3, 0, 64, 32)
    stream = ExampleStream(data, maker, seed=0, threads=2, rank=1, world=2)
    with closing(stream.items(Position())) as items, pytest.raises(SourceError, match=r"epoch 0 has no.*worker 2 of 2"):
        next(items)
    assert data.describe()["passed_over"] == {"no mask that passes the filters": 3}
