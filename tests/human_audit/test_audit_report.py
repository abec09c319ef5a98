"""The report: what it says of a run whose truth is known, and how people are counted."""

from __future__ import annotations

import numpy as np
import pytest
from human_audit.audited import judge, random_images, rightly, truly_good, write

from data_engine.dataset.reader import MaskDataset
from data_engine.human_audit.answers import Answer
from data_engine.human_audit.design import Design
from data_engine.human_audit.new_sample import make_sample
from data_engine.human_audit.report import make_report
from data_engine.human_audit.report_table import as_json, headline, remarks

EQUAL_STRATA = Design(size=45, stratify=("stability", "iou"), stability_edges=(0.5, 0.8), iou_edges=(0.7,))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> MaskDataset:
    images = random_images(120, seed=3)
    names = list(images)
    return write(tmp_path_factory.mktemp("dataset") / "masks", images, [names[:50], names[50:]])


@pytest.fixture(scope="module")
def truth(dataset: MaskDataset) -> np.ndarray:
    return truly_good(dataset.masks())


@pytest.mark.parametrize(
    "design",
    [Design(size=10**6), Design(size=10**6, stratify=("iou",)), Design(unit="images", size=10**6)],
    ids=["masks", "strata", "images"],
)
def test_a_census_is_the_truth_in_every_bin(dataset, truth, design):
    sample = make_sample(dataset, f"census-{design.unit}-{len(design.stratify)}", design)
    report = make_report(sample, judge(sample, rightly))
    assert report.finished
    assert report.precision.share == pytest.approx(truth.mean())
    assert report.precision.interval.width < 1e-9
    table = dataset.masks()
    bins = sample.facts.bins.of(table["stability_score"].to_numpy(), table["predicted_iou"].to_numpy())
    for entries, numbers in ((report.stability, bins[0]), (report.iou, bins[1])):
        for number, entry in enumerate(entries):
            assert entry.estimate.share == pytest.approx(truth[numbers == number].mean())
            assert entry.estimate.population == (numbers == number).sum() == entry.sampled


@pytest.mark.parametrize(
    "design", [Design(size=45), EQUAL_STRATA, Design(unit="images", size=20)], ids=["masks", "strata", "images"]
)
def test_the_estimate_is_unbiased_and_its_interval_holds_the_truth(dataset, truth, design):
    """Over 60 seeds, and judged only in part: for the run and for a bin."""
    table = dataset.masks()
    shares, covered, in_bin, bin_covered = [], 0, [], 0
    for seed in range(60):
        seeded = Design(**{name: getattr(design, name) for name in Design.__slots__} | {"seed": seed})
        sample = make_sample(dataset, f"seed-{design.unit}-{len(design.stratify)}-{seed}", seeded)
        report = make_report(sample, judge(sample, rightly, masks=round(0.8 * sample.facts.masks)))
        low_iou = report.iou[0].estimate
        inside = truth[
            sample.facts.bins.of(*(table[n].to_numpy() for n in ("stability_score", "predicted_iou")))[1] == 0
        ]
        shares.append(report.precision.share)
        covered += report.precision.interval.low <= truth.mean() <= report.precision.interval.high
        in_bin.append(low_iou.share)
        bin_covered += low_iou.interval.low <= inside.mean() <= low_iou.interval.high
    assert abs(np.mean(shares) - truth.mean()) < 4 * np.std(shares) / np.sqrt(60)
    assert abs(np.mean(in_bin) - inside.mean()) < 4 * np.std(in_bin) / np.sqrt(60)
    assert min(covered, bin_covered) >= 51  # 95 % of 60 is 57; 50 or fewer happen once in 2,000 times


def test_people_unsure_and_disagreement(dataset):
    sample = make_sample(dataset, "people", Design(size=10))
    one = judge(sample, lambda position, good: "accept" if position < 6 else "reject", "A", seconds=2)
    other = judge(sample, lambda position, good: "unsure" if position == 0 else "accept", "B", seconds=4, masks=8)
    third = judge(sample, lambda position, good: "unsure", "C", masks=1)
    report = make_report(sample, one + other + third)
    assert report.precision.share == pytest.approx((6 + 0.5 + 0.5 + 0 + 0) / 10)  # A and B differ on masks 6 and 7
    assert report.unsure_rejected.share == pytest.approx((5 + 1 / 3 + 1) / 10)
    assert report.unsure_accepted.share == pytest.approx((6 + 1) / 10)
    assert [(p.who, p.answered, p.accepted, p.rejected, p.unsure, p.median_seconds) for p in report.people] == [
        ("A", 10, 6, 4, 0, 2),
        ("B", 8, 7, 0, 1, 4),
        ("C", 1, 0, 0, 1, 2),
    ]
    assert [(pair.first, pair.second, pair.masks, pair.agreed) for pair in report.agreements] == [
        ("A", "B", 8, 5),
        ("A", "C", 1, 0),
        ("B", "C", 1, 1),
    ]
    assert report.median_seconds == 2


def test_a_mask_that_everyone_is_unsure_of_is_not_decided(dataset):
    sample = make_sample(dataset, "unsure", Design(size=4))
    report = make_report(
        sample, judge(sample, lambda position, good: ("unsure", "accept", "accept", "reject")[position])
    )
    assert (report.answered, report.undecided, report.precision.decided) == (4, 1, 3)
    assert report.precision.share == pytest.approx(2 / 3)
    assert (report.unsure_rejected.share, report.unsure_accepted.share) == (0.5, 0.75)


def test_answers_to_other_masks_are_passed_over_and_reasons_counted(dataset):
    sample = make_sample(dataset, "reasons", Design(size=6))
    answers = [
        Answer(image_id=i, mask_id=m, who="A", verdict="reject", reason=reason, answered_at=answer.answered_at)
        for answer, (i, m), reason in zip(
            judge(sample, rightly),
            [*sample.keys[:5], ("elsewhere.jpg", 0)],
            ["other", "part_missing", "part_missing", None, "other", "other"],
            strict=True,
        )
    ]
    report = make_report(sample, answers)
    assert report.answered == 5
    assert report.reasons == {"other": 2, "part_missing": 2}


def test_words_and_json(dataset):
    sample = make_sample(dataset, "words", EQUAL_STRATA)
    report = make_report(sample, judge(sample, rightly, masks=3))
    assert "45 masks drawn at random by stability and iou (equal strata) from" in headline(report)
    assert "3 of 45 judged" in headline(report)
    assert any("not all of the sample is judged" in remark for remark in remarks(report, dataset.totals.masks))
    assert any("has 5 masks now" in remark for remark in remarks(report, 5))
    found = as_json(report)
    assert (found["answered"], found["sampled"], found["finished"]) == (3, 45, False)
    assert len(found["by_stability"]) == 3
    assert len(found["by_predicted_iou"]) == 2
    assert found["precision"]["low"] <= found["precision"]["share"] <= found["precision"]["high"]
