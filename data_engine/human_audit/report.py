"""What the answers to a sample say of the whole run."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median

from data_engine.human_audit.agreement import Agreement, agreements
from data_engine.human_audit.answers import Answer, Key, last_answers
from data_engine.human_audit.estimators import Estimate, Stratum, clustered, stratified
from data_engine.human_audit.sample import Sample, SampleFacts

Share = float | None  # of a mask: how far it is accepted, None where it is not decided


@dataclass(frozen=True, slots=True, kw_only=True)
class BinEstimate:
    label: str
    sampled: int
    estimate: Estimate


@dataclass(frozen=True, slots=True, kw_only=True)
class Person:
    who: str
    accepted: int
    rejected: int
    unsure: int
    median_seconds: float | None

    @property
    def answered(self) -> int:
        return self.accepted + self.rejected + self.unsure


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The state of an audit. Estimates are shares of accepted masks, for the whole run."""

    facts: SampleFacts
    answered: int  # masks of the sample with an answer
    undecided: int  # of these, masks that nobody accepted or rejected
    precision: Estimate
    unsure_rejected: Estimate  # the same, with every unsure taken as a rejection
    unsure_accepted: Estimate
    stability: tuple[BinEstimate, ...]
    iou: tuple[BinEstimate, ...]
    reasons: dict[str, int]  # of answers that are not an acceptance
    people: tuple[Person, ...]
    agreements: tuple[Agreement, ...]
    median_seconds: float | None

    @property
    def finished(self) -> bool:
        return self.answered == self.facts.masks


def make_report(sample: Sample, answers: Iterable[Answer]) -> Report:
    """answers: by time; those of a person that count are the last ones. Answers to other masks are passed over."""
    drawn = set(sample.keys)
    by_person = {
        who: {key: answer for key, answer in given.items() if key in drawn}
        for who, given in last_answers(answers).items()
    }
    counting = [answer for given in by_person.values() for answer in given.values()]
    votes: defaultdict[Key, Counter[str]] = defaultdict(Counter)
    for answer in counting:
        votes[answer.key][answer.verdict] += 1
    by_position = [votes.get(key, Counter[str]()) for key in sample.keys]
    shares = [_share(vote["accept"], vote["reject"]) for vote in by_position]
    labels = sample.facts.bins.labels
    return Report(
        facts=sample.facts,
        answered=len(votes),
        undecided=sum(not vote["accept"] + vote["reject"] for vote in votes.values()),
        precision=estimate(sample, shares),
        unsure_rejected=estimate(
            sample, [_share(vote["accept"], vote["reject"] + vote["unsure"]) for vote in by_position]
        ),
        unsure_accepted=estimate(
            sample, [_share(vote["accept"] + vote["unsure"], vote["reject"]) for vote in by_position]
        ),
        stability=_bins(sample, shares, "stability", labels("stability")),
        iou=_bins(sample, shares, "iou", labels("iou")),
        reasons=dict(Counter(answer.reason for answer in counting if answer.reason).most_common()),
        people=tuple(_person(who, list(given.values())) for who, given in sorted(by_person.items())),
        agreements=tuple(
            agreements(
                {who: {key: answer.verdict for key, answer in given.items()} for who, given in by_person.items()}
            )
        ),
        median_seconds=_median_seconds(counting),
    )


def estimate(
    sample: Sample, shares: Sequence[Share], stability_bin: int | None = None, iou_bin: int | None = None
) -> Estimate:
    """The estimate for the run, or for its masks in one bin. shares: by position in the sample."""
    where = _Bin(stability_bin, iou_bin)
    if sample.facts.design.unit == "images":
        return _of_images(sample, shares, where)
    return _of_masks(sample, shares, where)


@dataclass(frozen=True, slots=True)
class _Bin:
    """A part of the run, by the bins of its scores; None is all of them."""

    stability: int | None
    iou: int | None

    def holds(self, stability: int, iou: int) -> bool:
        return self.stability in (None, stability) and self.iou in (None, iou)

    def population(self, cells: list[list[int]], within: _Bin) -> int:
        """Masks of the run in both."""
        return sum(
            count
            for stability, row in enumerate(cells)
            for iou, count in enumerate(row)
            if self.holds(stability, iou) and within.holds(stability, iou)
        )


_ALL = _Bin(None, None)


def _of_masks(sample: Sample, shares: Sequence[Share], where: _Bin) -> Estimate:
    """Given how many they are, the drawn masks of a stratum that lie in a bin are a simple random sample of its masks
    in the bin, and the run's number of those is known. So each bin is a stratified sample of its own."""
    bins = _bins_by_position(sample)
    strata = []
    for count in sample.facts.strata:
        of_stratum = _Bin(count.stability_bin, count.iou_bin)
        population = of_stratum.population(sample.facts.population.cells, where)
        inside = [
            share
            for share, pair in zip(shares, bins, strict=True)
            if share is not None and of_stratum.holds(*pair) and where.holds(*pair)
        ]
        if population:
            strata.append(Stratum(population=population, decided=len(inside), accepted=sum(inside)))
    return stratified(strata)


def _of_images(sample: Sample, shares: Sequence[Share], where: _Bin) -> Estimate:
    columns = [sample.masks[name].to_pylist() for name in ("shard", "slice", "row")]
    accepted: defaultdict[tuple, float] = defaultdict(float)
    decided: Counter[tuple] = Counter()
    sizes: Counter[tuple] = Counter()
    for image, pair, share in zip(zip(*columns, strict=True), _bins_by_position(sample), shares, strict=True):
        if where.holds(*pair):
            sizes[image] += 1
            if share is not None:
                decided[image] += 1
                accepted[image] += share
    population = sample.facts.population
    return clustered(
        [accepted[image] for image in sizes],
        [decided[image] for image in sizes],
        list(sizes.values()),
        population.images_with_masks,
        where.population(population.cells, _ALL),
    )


def _bins_by_position(sample: Sample) -> list[tuple[int, int]]:
    columns = (sample.masks[name].to_pylist() for name in ("stability_bin", "iou_bin"))
    return list(zip(*columns, strict=True))


def _bins(sample: Sample, shares: Sequence[Share], score: str, labels: list[str]) -> tuple[BinEstimate, ...]:
    numbers = sample.masks[f"{score}_bin"].to_pylist()
    return tuple(
        BinEstimate(
            label=label,
            sampled=numbers.count(number),
            estimate=estimate(sample, shares, **{f"{score}_bin": number}),
        )
        for number, label in enumerate(labels)
    )


def _share(accepted: int, rejected: int) -> Share:
    return accepted / (accepted + rejected) if accepted + rejected else None


def _person(who: str, answers: list[Answer]) -> Person:
    verdicts = Counter(answer.verdict for answer in answers)
    return Person(
        who=who,
        accepted=verdicts["accept"],
        rejected=verdicts["reject"],
        unsure=verdicts["unsure"],
        median_seconds=_median_seconds(answers),
    )


def _median_seconds(answers: Iterable[Answer]) -> float | None:
    seconds = [answer.seconds for answer in answers if answer.seconds is not None]
    return median(seconds) if seconds else None
