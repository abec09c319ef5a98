"""Masks that are the same within an image: by the IoU of their pixels, the better one stays."""

import numpy as np
import pyarrow as pa
import pytest
from dataset.small_dataset import HEIGHT, WIDTH
from dedup.planted_duplicates import build_pictures, columns, picture, rectangle
from hypothesis import given
from hypothesis import strategies as st

from data_engine.dataset.duplicates import MASK_DUPLICATES, read_table
from data_engine.dataset.reader import DatasetImage, MaskDataset
from data_engine.dedup.mask_duplicates import duplicates_within, mask_duplicates
from data_engine.dedup.run import deduplicate
from data_engine.dedup.settings import DedupSettings

pytest.importorskip("duckdb")


def found(root, iou):
    version = deduplicate(str(root), DedupSettings(masks_iou=iou, threads=1)).version
    return read_table(str(root), version.mask_duplicates, MASK_DUPLICATES).to_pylist()


def test_processes_find_the_same_in_the_same_order(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    slices = []
    for number in range(9):
        x = rng.integers(0, 20, 6)
        masks = [rectangle(5 + a, 5, 20, 20) for a in x]
        slices.append([picture(f"{number}", number, n_masks=6, masks=columns(masks, rng.uniform(0.8, 1, 6)))])
    build_pictures(tmp_path, *slices)
    dataset = MaskDataset(tmp_path)
    alone = pa.concat_tables(mask_duplicates(dataset, dataset.commits, 0.6, 1))
    monkeypatch.setattr("data_engine.dedup.mask_duplicates._WORTH_PROCESSES", 1)
    tables = list(mask_duplicates(dataset, dataset.commits, 0.6, 2))
    assert len(tables) == 9
    assert alone.num_rows > 5
    assert pa.concat_tables(tables).equals(alone)


def test_the_same_object_from_two_crops(tmp_path):
    """A mask of the whole image, the same one seen in a crop, a part of it, and another object."""
    masks = [rectangle(5, 5, 20, 20), rectangle(5, 5, 20, 19), rectangle(5, 5, 10, 10), rectangle(40, 5, 10, 10)]
    crops = {"crop_layer": [0, 1, 1, 1], "crop_x": [0, 3, 3, 30], "crop_w": [60, 30, 30, 30]}
    build_pictures(
        tmp_path,
        [picture("a", 1, n_masks=4, masks=columns(masks, [0.9, 0.95, 0.99, 0.9], crops)), picture("b", 2)],
        [picture("c", 3, n_masks=0)],
    )
    only = {"image_id": "a", "mask_id": 0, "duplicate_of": 1, "iou": pytest.approx(0.95)}
    assert found(tmp_path, 0.9) == [only]
    assert found(tmp_path, 0.96) == []


@given(st.integers(0, 2**32 - 1), st.sampled_from([0.3, 0.5, 0.8]))
def test_what_stays_is_apart_and_what_goes_is_not(seed, threshold):
    rng = np.random.default_rng(seed)
    sides = [(rng.integers(0, 4), rng.integers(0, 4), rng.integers(6, 9), rng.integers(6, 9)) for _ in range(8)]
    masks, scores = [rectangle(*side) for side in sides], np.float32(rng.choice([0.8, 0.9, 1.0], 8))
    table = pa.table({name: list(values) for name, values in columns(masks, scores).items()} | {"mask_id": range(8)})
    image = DatasetImage({"image_id": "a", "height": HEIGHT, "width": WIDTH}, table)
    gone = {mask_id: (of, iou) for mask_id, of, iou in duplicates_within(image, threshold)}
    iou = np.array([[(a & b).sum() / (a | b).sum() for b in masks] for a in masks])
    kept = [i for i in range(8) if i not in gone]
    assert all(iou[a, b] <= threshold for a in kept for b in kept if a != b)
    for mask_id, (of, its_iou) in gone.items():
        assert of in kept
        assert its_iou == pytest.approx(max(iou[mask_id, kept]))
        assert any(iou[mask_id, k] > threshold and (scores[k], -k) > (scores[mask_id], -mask_id) for k in kept)


def test_without_asking_masks_are_not_compared(tmp_path):
    build_pictures(tmp_path, [picture("a", 1)])
    assert deduplicate(str(tmp_path), DedupSettings()).version.mask_duplicates is None
    assert len(list(MaskDataset(tmp_path, deduplicated=True))) == 1
