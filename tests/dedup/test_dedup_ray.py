"""Ray Data finds what DuckDB finds, to the row."""

import fsspec
import numpy as np
import pytest
from dedup.hash_sets import balanced, flipped
from dedup.planted_duplicates import build_pictures, picture
from planted_secret import SECRET

from data_engine.dataset.duplicates import MASK_DUPLICATES, read_table
from data_engine.dataset.reader import MaskDataset
from data_engine.dedup import on_ray
from data_engine.dedup.run import deduplicate
from data_engine.dedup.settings import DedupSettings

ray = pytest.importorskip("ray")
pytest.importorskip("pandas")  # of Ray Data
pytest.importorskip("duckdb")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def small_ray(s3_endpoint):
    """Its processes find the store of `bucket`."""
    names = ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION")
    found = dict(zip(names, (s3_endpoint, "testing", SECRET, "us-east-1"), strict=True))
    with pytest.MonkeyPatch.context() as patch:
        for name, value in found.items():
            patch.setenv(name, value)
        ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="WARNING")
        yield
        ray.shutdown()


@pytest.mark.parametrize("threshold", [None, 4])
def test_rows_equal_those_of_one_machine(small_ray, tmp_path, monkeypatch, threshold):
    monkeypatch.setattr(on_ray, "KEYS_AT_ONCE", 3)
    rng = np.random.default_rng(0)
    some = balanced(rng, 150)
    hashes = np.concatenate([some, flipped(rng, some[:60], 4), some[:20], flipped(rng, np.repeat(some[:1], 60), 3)])
    rows = [
        picture(f"{i:04d}", int(h), content=str(h if i % 3 else i), n_masks=int(rng.integers(1, 5)))
        for i, h in enumerate(hashes)
    ]
    rows += [picture("failed", None), picture("without", None, status="ok", error_type=None)]
    build_pictures(tmp_path, rows[:100], rows[100:])
    masks = None
    for engine in ("local", "ray"):
        settings = DedupSettings(threshold=threshold, engine=engine, threads=1, masks_iou=0.1)
        for kept in tmp_path.glob("_dedup/masks-*"):
            kept.unlink()  # what the other engine found
        report = deduplicate(str(tmp_path), settings, version=engine)
        assert report.counts["compared"] == len(hashes)
        found = read_table(str(tmp_path), report.version.mask_duplicates, MASK_DUPLICATES)
        assert masks is None or found.equals(masks)
        masks = found
    assert masks.num_rows
    tables = [MaskDataset(tmp_path, deduplicated=engine).duplicates for engine in ("local", "ray")]
    assert tables[0].num_rows > 10
    assert tables[0].equals(tables[1])


@pytest.mark.parametrize("folder", ["status=done", "n_masks=9"])
def test_folders_on_the_way_to_the_dataset_are_no_columns(small_ray, tmp_path, folder):
    root = tmp_path / folder
    build_pictures(root, [picture("a", 1, n_masks=1), picture("b", 1, n_masks=2), picture("c", 2**40 - 1, n_masks=0)])
    found = [
        deduplicate(str(root), DedupSettings(engine=engine, threads=1), version=engine).counts
        for engine in ("local", "ray")
    ]
    assert found[0]["left_out"] == 1
    assert found[0] == found[1]
    assert MaskDataset(root, deduplicated="ray").left_out == {"a"}


def test_a_dataset_of_nothing(small_ray, tmp_path):
    build_pictures(tmp_path)
    report = deduplicate(str(tmp_path), DedupSettings(engine="ray"))
    assert report.counts["left_out"] == 0


def test_a_dataset_in_a_store(small_ray, tmp_path, bucket):
    rows = [picture(f"{i}", 2**i - 1, content=f"{i // 2}") for i in range(20)]
    build_pictures(tmp_path / "masks", rows[:12], rows[12:])
    fsspec.filesystem("s3").put(f"{tmp_path}/masks/", f"{bucket}/masks/", recursive=True)
    tables = []
    for engine in ("local", "ray"):
        deduplicate(f"{bucket}/masks", DedupSettings(threshold=2, engine=engine, threads=1), version=engine)
        tables.append(MaskDataset(f"{bucket}/masks", deduplicated=engine).duplicates)
    assert tables[0].num_rows == 20
    assert tables[0].equals(tables[1])
