"""Images that another dataset has too are found, each by itself."""

import numpy as np
import pytest
from dedup.hash_sets import balanced, flipped
from dedup.planted_duplicates import build_pictures, picture

from data_engine.dataset.duplicates import newest_version
from data_engine.dataset.reader import MaskDataset
from data_engine.dedup.run import deduplicate
from data_engine.dedup.settings import DedupSettings
from data_engine.errors import UsageError

pytest.importorskip("duckdb")

SCENE = 0x0123_4567_89AB_CDEF


@pytest.fixture
def train_and_test(tmp_path):
    build_pictures(
        tmp_path / "train",
        [
            picture("same-bytes", SCENE, content="t1"),
            picture("near", SCENE ^ 0b11),
            picture("near-near", SCENE ^ 0b111111),
            picture("nearer-to-another", SCENE ^ 0xF0),
            picture("apart", SCENE ^ 0xFFFF),
        ],
    )
    build_pictures(tmp_path / "test", [picture("t1", SCENE), picture("t2", SCENE ^ 0x300000F0)], [picture("t0", SCENE)])
    return str(tmp_path / "train"), str(tmp_path / "test")


def leaks(train, test, threshold):
    name = deduplicate(train, DedupSettings(threshold=threshold, threads=1), against=test).version.version
    dataset = MaskDataset(train, deduplicated=name)
    rows = dataset.duplicates.to_pylist()
    assert not any(row["keep"] for row in rows)
    assert dataset.images()["image_id"].to_pylist() == [image.image_id for image in dataset]
    return {row["image_id"]: (row["of"], row["reason"], row["distance"]) for row in rows}


def test_what_leaks_and_of_what(train_and_test):
    assert leaks(*train_and_test, 4) == {
        "same-bytes": ("t1", "exact", 0),
        "near": ("t0", "near", 2),
        "nearer-to-another": ("t2", "near", 2),
    }


@pytest.mark.parametrize(("threshold", "found"), [(None, {"same-bytes"}), (0, {"same-bytes"})])
def test_equal_ones_only(train_and_test, threshold, found):
    assert set(leaks(*train_and_test, threshold)) == found


def test_the_nearest_is_named(tmp_path):
    """As by comparing all with all."""
    rng = np.random.default_rng(0)
    theirs = balanced(rng, 60)
    mine = np.concatenate([flipped(rng, theirs, 9), flipped(rng, theirs, 3), balanced(rng, 60)])
    build_pictures(tmp_path / "a", [picture(f"{i:03d}", int(h)) for i, h in enumerate(mine)])
    build_pictures(tmp_path / "b", [picture(f"t{h:020d}", int(h)) for h in theirs])
    apart = np.unpackbits((mine[:, None] ^ theirs)[..., None].view(np.uint8), axis=-1).sum(-1)
    nearest = [min(zip(row, theirs.tolist(), strict=True)) for row in apart.tolist()]
    expected = {f"{i:03d}": (f"t{h:020d}", "near", d) for i, (d, h) in enumerate(nearest) if d <= 6}
    assert leaks(str(tmp_path / "a"), str(tmp_path / "b"), 6) == expected


def test_such_a_version_is_not_what_deduplicated_means(train_and_test):
    leaks(*train_and_test, 4)
    assert newest_version(train_and_test[0]) is None


def test_it_runs_on_one_machine(train_and_test):
    with pytest.raises(UsageError, match="one machine"):
        deduplicate(train_and_test[0], DedupSettings(engine="ray"), against=train_and_test[1])
