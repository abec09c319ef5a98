"""Drawing: the same masks whatever the files look like, each as likely as any other, as many as were asked for."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from human_audit.audited import Images, random_images, write
from hypothesis import given
from hypothesis import strategies as st

from data_engine.dataset.reader import MaskDataset
from data_engine.errors import DatasetError, UsageError
from data_engine.human_audit.design import Design, allocate
from data_engine.human_audit.new_sample import make_sample
from data_engine.human_audit.scan import side_by_side
from data_engine.human_audit.score_bins import ScoreBins, ScoreHistogram

DESIGNS = [
    Design(size=40),
    Design(size=60, stratify=("stability", "iou")),
    Design(size=50, stratify=("iou",), allocation="proportional", iou_edges=(0.7, 0.9)),
    Design(unit="images", size=7),
]


def of_both(design: Design) -> str:
    return f"{design.unit}-{'-'.join(design.stratify) or 'simple'}"


@pytest.fixture(scope="module")
def images() -> Images:
    return random_images(60)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory, images: Images) -> MaskDataset:
    names = list(images)
    return write(tmp_path_factory.mktemp("dataset") / "masks", images, [names[:10], names[10:11], names[11:]])


@pytest.mark.parametrize("design", DESIGNS, ids=of_both)
def test_the_order_and_the_cut_of_the_files_do_not_matter(dataset, images, design, tmp_path):
    shuffled = list(np.random.default_rng(1).permutation(list(images)))
    other = write(tmp_path / "other", images, [shuffled[i : i + 7] for i in range(0, 60, 7)])
    here = make_sample(dataset, f"order-{of_both(design)}", design)
    there = make_sample(other, "order", design)
    assert here.facts.sha256 == there.facts.sha256
    columns = ["position", "image_id", "mask_id", "inclusion_probability", "stability_bin", "iou_bin", "predicted_iou"]
    assert here.masks.select(columns).equals(there.masks.select(columns))
    assert here.facts.strata == there.facts.strata
    assert here.facts.population.cells == there.facts.population.cells


@pytest.mark.parametrize("design", DESIGNS, ids=of_both)
def test_rows_are_those_of_the_dataset(dataset, design):
    sample = make_sample(dataset, f"rows-{of_both(design)}", design)
    assert sample.masks["position"].to_pylist() == list(range(sample.facts.masks))
    assert len(set(sample.keys)) == sample.facts.masks
    for row in sample.masks.to_pylist():
        image = dataset[row["image_id"]]
        mask = image.masks.slice(row["mask_id"], 1).to_pylist()[0]
        assert row["uri"] == image.row["uri"]
        assert {name: row[name] for name in mask if name in row} == {name: mask[name] for name in mask if name in row}
        record = next(record for record in dataset.commits if record.slice == row["slice"])
        assert dataset.image_ids(record)[row["row"]] == row["image_id"]


def test_another_seed_draws_other_masks_and_every_mask_is_as_likely(dataset):
    """Chi-squared over 120 seeds of 40 masks; 99.9 % of fair draws stay below the bound."""
    from scipy import stats

    total = dataset.totals.masks
    seen: Counter[tuple[str, int]] = Counter()
    first: Counter[tuple[str, int]] = Counter()
    for seed in range(120):
        sample = make_sample(dataset, f"seed-{seed}", Design(size=40, seed=seed))
        seen.update(sample.keys)
        first.update(sample.keys[:20])  # those who stop early have judged a random sample too
    for counts, each in ((seen, 40), (first, 20)):
        expected = 120 * each / total
        statistic = sum((counts[key] - expected) ** 2 for key in counts) + (total - len(counts)) * expected**2
        statistic /= expected * (1 - each / total)
        assert statistic < stats.chi2.ppf(0.999, total - 1)


def test_strata_give_what_their_probabilities_say(dataset):
    sample = make_sample(dataset, "strata", Design(size=60, stratify=("stability", "iou")))
    assert sum(stratum.population for stratum in sample.facts.strata) == dataset.totals.masks
    assert sum(stratum.sampled for stratum in sample.facts.strata) == 60
    rows = sample.masks.to_pylist()
    for stratum in sample.facts.strata:
        inside = [
            row for row in rows if (row["stability_bin"], row["iou_bin"]) == (stratum.stability_bin, stratum.iou_bin)
        ]
        assert len(inside) == stratum.sampled
        assert stratum.population == sample.facts.population.cells[stratum.stability_bin][stratum.iou_bin]
        for row in inside:
            assert row["inclusion_probability"] == pytest.approx(stratum.sampled / stratum.population)


def test_whole_images_are_whole(dataset, images):
    sample = make_sample(dataset, "images", Design(unit="images", size=7))
    masks = Counter(sample.masks["image_id"].to_pylist())
    assert len(masks) == sample.facts.images == 7
    assert all(len(images[image_id]) == count for image_id, count in masks.items())
    with_masks = sum(len(scores) > 0 for scores in images.values())
    assert sample.facts.population.images_with_masks == with_masks
    assert set(sample.masks["inclusion_probability"].to_pylist()) == {7 / with_masks}


def test_more_than_there_is_draws_all(dataset):
    masks = make_sample(dataset, "all", Design(size=10**6))
    images = make_sample(dataset, "all-images", Design(unit="images", size=10**6))
    assert masks.facts.masks == images.facts.masks == dataset.totals.masks
    assert set(masks.masks["inclusion_probability"].to_pylist()) == {1.0}


def test_a_growing_dataset_can_be_drawn_from_and_an_empty_one_not(tmp_path, images):
    growing = write(tmp_path / "growing", images, [list(images)[:20]], complete=False)
    assert not make_sample(growing, "now", Design(size=5)).facts.population.complete
    for slices in ([], [["none.jpg"]]):
        empty = write(tmp_path / f"empty{len(slices)}", {"none.jpg": np.empty((0, 2), np.float32)}, slices)
        with pytest.raises(DatasetError, match="no masks to draw from"):
            make_sample(empty, "none", Design(size=5))


@given(
    st.lists(st.integers(0, 200), min_size=1, max_size=12),
    st.integers(1, 500),
    st.sampled_from(["equal", "proportional"]),
)
def test_allocation_gives_all_that_is_asked_for_and_no_stratum_more_than_it_has(populations, size, how):
    given_ = allocate(populations, size, how)
    assert sum(given_) == min(size, sum(populations))
    assert all(count <= population for count, population in zip(given_, populations, strict=True))
    if size >= 2 * len(populations):
        assert all(count >= min(2, population) for count, population in zip(given_, populations, strict=True))


def test_allocations():
    assert allocate([1000, 1000, 4], 30, "equal") == [13, 13, 4]
    assert allocate([6000, 3000, 1000], 100, "proportional") == [60, 30, 10]


def test_bins_hold_about_as_many_masks_each_and_0_95_is_0_95():
    rng = np.random.default_rng(0)
    histogram = ScoreHistogram()
    for _ in range(3):
        histogram.add(rng.beta(8, 1, 5000).astype(np.float32), rng.uniform(0.8, 1.1, 5000).astype(np.float32))
    cells = np.array(histogram.cells(histogram.bins(4)))
    assert cells.shape == (4, 4)
    assert cells.sum() == histogram.masks == 15000
    assert (abs(cells.sum(0) / 15000 - 0.25) < 0.01).all()
    assert (abs(cells.sum(1) / 15000 - 0.25) < 0.02).all()
    bins = ScoreBins(stability=(0.95,), iou=(0.88,))
    scores = np.array([0.949, 0.95, 0.951], np.float32)
    assert bins.of(scores, np.array([0.879, 0.88, 0.9], np.float32))[0].tolist() == [0, 1, 1]
    assert bins.labels("stability") == ["< 0.95", ">= 0.95"]


def test_equal_scores_make_one_bin():
    histogram = ScoreHistogram()
    histogram.add(np.full(10, 0.9, np.float32), np.full(10, 1.0, np.float32))
    assert histogram.cells(histogram.bins(3)) == [[10]]


@pytest.mark.parametrize(
    "wrong",
    [
        {"size": 0},
        {"seed": -1},
        {"bins": 0},
        {"stratify": ("area",)},
        {"unit": "images", "stratify": ("iou",)},
    ],
)
def test_designs_that_cannot_be(wrong):
    with pytest.raises(UsageError):
        Design(**wrong)


def test_edges_must_ascend(dataset):
    with pytest.raises(UsageError, match="must ascend"):
        make_sample(dataset, "edges", Design(size=5, stability_edges=(0.9, 0.8)))


def test_work_side_by_side_keeps_its_order_and_reads_little_ahead():
    taken = 0

    def items():
        nonlocal taken
        for number in range(200):
            taken += 1
            yield number

    results = side_by_side(lambda number: number * 2, items())
    assert [next(results) for _ in range(3)] == [0, 2, 4]
    assert taken < 30
    assert list(results) == [2 * number for number in range(3, 200)]


def test_the_dataset_is_left_alone(dataset):
    before = {path: path.stat().st_mtime_ns for path in Path(dataset.root).rglob("*") if "_audits" not in path.parts}
    make_sample(dataset, "alone", Design(size=5))
    after = {path: path.stat().st_mtime_ns for path in Path(dataset.root).rglob("*") if "_audits" not in path.parts}
    assert {k: v for k, v in before.items() if k.is_file()} == {k: v for k, v in after.items() if k.is_file()}
