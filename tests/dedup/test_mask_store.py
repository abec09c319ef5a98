"""Duplicates of masks are kept slice by slice: what an earlier run compared is not compared again."""

from __future__ import annotations

import numpy as np
import pyarrow.parquet as pq
import pytest
from dedup.planted_duplicates import build_pictures, columns, picture, rectangle

from data_engine.dataset.duplicates import MASK_DUPLICATES, read_table
from data_engine.dataset.reader import MaskDataset
from data_engine.dedup import mask_duplicates as compared
from data_engine.dedup import mask_store
from data_engine.dedup.run import deduplicate
from data_engine.dedup.settings import DedupSettings
from data_engine.errors import DatasetError

pytest.importorskip("duckdb")


def slices(count):
    """Of three masks an image, some of them nearly the same."""
    rng = np.random.default_rng(0)
    made = []
    for number in range(count):
        masks = [rectangle(5 + x, 5, 20, 20) for x in rng.integers(0, 3, 3)]
        shapes = columns(masks, rng.uniform(0.8, 1, 3))
        made.append([picture(f"{number}", number, n_masks=3, masks=shapes), picture(f"{number}-none", None)])
    return made


@pytest.fixture
def seen(monkeypatch):
    """The slices that were compared."""
    seen = []
    find = compared.find_mask_duplicates

    def finding(dataset, record, iou):
        seen.append(record.slice)
        return find(dataset, record, iou)

    monkeypatch.setattr(compared, "find_mask_duplicates", finding)
    return seen


def find(root, iou=0.8, **options):
    report = deduplicate(str(root), DedupSettings(masks_iou=iou, threads=1), **options)
    return report if report.version is None else read_table(str(root), report.version.mask_duplicates, MASK_DUPLICATES)


def test_an_interrupted_run_goes_on_with_the_slice_that_is_next(tmp_path, seen, monkeypatch):
    build_pictures(tmp_path, *slices(9))
    monkeypatch.setattr(mask_store, "SLICES_PER_FILE", 2)
    find_one = compared.find_mask_duplicates

    def interrupted(dataset, record, iou):
        if record.slice == 5:
            raise KeyboardInterrupt
        return find_one(dataset, record, iou)

    monkeypatch.setattr(compared, "find_mask_duplicates", interrupted)
    with pytest.raises(KeyboardInterrupt):
        find(tmp_path)
    assert seen == [0, 1, 2, 3, 4]
    assert len(list(tmp_path.glob("_dedup/masks-0.8-*"))) == 3
    monkeypatch.setattr(compared, "find_mask_duplicates", find_one)
    found = find(tmp_path)
    assert seen == list(range(9))

    build_pictures(tmp_path / "again", *slices(9))
    assert found.num_rows > 4
    assert found.equals(find(tmp_path / "again"))


def test_of_a_dataset_that_has_grown_new_slices_are_compared(tmp_path, seen):
    build_pictures(tmp_path, *slices(3), complete=False)
    find(tmp_path)
    build_pictures(tmp_path, *slices(5))
    found = find(tmp_path)
    assert seen == [0, 1, 2, 3, 4]
    build_pictures(tmp_path / "again", *slices(5))
    assert found.equals(find(tmp_path / "again"))


def test_another_iou_is_compared_anew(tmp_path, seen):
    build_pictures(tmp_path, *slices(3))
    assert find(tmp_path, 0.95).num_rows < find(tmp_path, 0.5).num_rows
    assert seen == [0, 1, 2] * 2


def test_a_dry_run_keeps_nothing(tmp_path, seen):
    build_pictures(tmp_path, *slices(3))
    assert find(tmp_path, dry_run=True).counts["mask_duplicates"]
    assert not (tmp_path / "_dedup").exists()


def test_of_another_job_nothing_counts(tmp_path, seen):
    build_pictures(tmp_path, *slices(3))
    find(tmp_path)
    (one,) = tmp_path.glob("_dedup/masks-*")
    table = pq.ParquetFile(one).read()
    said = table.schema.metadata[b"data_engine"].replace(b'"fingerprint": "', b'"fingerprint": "x')
    pq.write_table(table.replace_schema_metadata({b"data_engine": said}), one)
    find(tmp_path)
    assert seen == [0, 1, 2] * 2


def test_a_damaged_file_is_named(tmp_path):
    build_pictures(tmp_path, *slices(3))
    find(tmp_path)
    (one,) = tmp_path.glob("_dedup/masks-*")
    one.write_bytes(one.read_bytes()[:-20])
    with pytest.raises(DatasetError, match=r"masks-0.8-.*damaged.*delete it"):
        find(tmp_path)


def test_in_an_object_store_it_is_found_again(tmp_path, seen, bucket):
    import fsspec

    build_pictures(tmp_path, *slices(3))
    fs, path = fsspec.core.url_to_fs(f"{bucket}/masks")
    fs.put(f"{tmp_path}/", f"{path}/", recursive=True)
    assert find(f"{bucket}/masks").equals(find(f"{bucket}/masks"))
    assert seen == [0, 1, 2]
    whole, kept = (MaskDataset(f"{bucket}/masks", deduplicated=chosen) for chosen in (False, True))
    assert 0 < kept.masks(["area"]).num_rows < whole.masks(["area"]).num_rows
