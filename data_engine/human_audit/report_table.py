"""A report for people to read, and for programs."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from rich.table import Table

from data_engine.human_audit.answers import REASONS
from data_engine.human_audit.estimators import Estimate
from data_engine.human_audit.report import BinEstimate, Report
from data_engine.human_audit.sample import SampleFacts


def as_json(report: Report) -> dict[str, Any]:
    """Estimates with their intervals, counts and the design; shares from 0 to 1."""
    facts = asdict(report.facts)
    return {
        "name": report.facts.name,
        "finished": report.finished,
        "sampled": report.facts.masks,
        "answered": report.answered,
        "undecided": report.undecided,
        "precision": _estimate(report.precision),
        "precision_with_unsure_rejected": _estimate(report.unsure_rejected),
        "precision_with_unsure_accepted": _estimate(report.unsure_accepted),
        "by_stability": [_bin(entry) for entry in report.stability],
        "by_predicted_iou": [_bin(entry) for entry in report.iou],
        "reasons": report.reasons,
        "median_seconds": report.median_seconds,
        "people": [{**asdict(person), "answered": person.answered} for person in report.people],
        "agreement": [asdict(pair) for pair in report.agreements],
        "design": facts["design"],
        "population": facts["population"],
        "strata": facts["strata"],
        "drawn_at": report.facts.created_at,
    }


def tables(report: Report) -> list[Table]:
    """The estimates; then people, reasons and agreement, where there are any."""
    first = _table("masks", "precision", "95 % interval", "judged", "drawn", "in run")
    _row(first, "all", report.precision, report.facts.masks)
    if report.undecided:
        _row(first, "  unsure as rejected", report.unsure_rejected, report.facts.masks)
        _row(first, "  unsure as accepted", report.unsure_accepted, report.facts.masks)
    for title, bins in (("stability", report.stability), ("predicted IoU", report.iou)):
        for entry in bins:
            _row(first, f"{title} {entry.label}", entry.estimate, entry.sampled)
    found = [first]
    if report.people:
        people = _table("who", "accepted", "rejected", "unsure", "median seconds")
        for person in report.people:
            people.add_row(
                person.who, *map(str, (person.accepted, person.rejected, person.unsure)), _number(person.median_seconds)
            )
        found.append(people)
    if report.reasons:
        reasons = _table("reason", "answers")
        for reason, count in report.reasons.items():
            reasons.add_row(REASONS[reason], str(count))
        found.append(reasons)
    if report.agreements:
        agreement = _table("who", "and who", "both judged", "agreed", "Cohen's kappa")
        for pair in report.agreements:
            kappa = "not defined" if pair.kappa is None else f"{pair.kappa:.2f}"
            agreement.add_row(pair.first, pair.second, str(pair.masks), f"{pair.agreed / pair.masks:.0%}", kappa)
        found.append(agreement)
    return found


def headline(report: Report) -> str:
    """What was drawn, and how far it is judged."""
    return f"{report.facts.name}: {drawn(report.facts)}; {report.answered:,} of {report.facts.masks:,} judged"


def drawn(facts: SampleFacts) -> str:
    """What was drawn, in words."""
    design, population = facts.design, facts.population
    if design.unit == "images":
        images = "1 image" if facts.images == 1 else f"{facts.images:,} images"
        return (
            f"{facts.masks:,} masks, all those of {images} drawn at random "
            f"from {population.images_with_masks:,} with {population.masks:,} masks"
        )
    how = f" by {' and '.join(design.stratify)} ({design.allocation} strata)" if design.stratify else ""
    return f"{facts.masks:,} masks drawn at random{how} from {population.masks:,}"


def remarks(report: Report, dataset_masks: int) -> list[str]:
    """What a reader should know besides. dataset_masks: how many the dataset has now."""
    population = report.facts.population
    found = []
    if dataset_masks != population.masks:
        found.append(
            f"the dataset has {dataset_masks:,} masks now; the sample speaks of the {population.masks:,} "
            "that it had when it was drawn"
        )
    if not report.finished:
        found.append("not all of the sample is judged: the order is random, so that the estimate holds, less precisely")
    empty = [entry for entry in report.facts.strata if entry.population and not entry.sampled]
    if empty:
        found.append(
            f"{len(empty)} strata gave no mask to the sample, so that nothing is known of "
            f"{sum(entry.population for entry in empty):,} masks; the interval allows for it"
        )
    return found


def _estimate(estimate: Estimate) -> dict[str, Any]:
    return {
        "share": estimate.share,
        "low": estimate.interval.low,
        "high": estimate.interval.high,
        "decided": estimate.decided,
        "population": estimate.population,
    }


def _bin(entry: BinEstimate) -> dict[str, Any]:
    return {"bin": entry.label, "sampled": entry.sampled, **_estimate(entry.estimate)}


def _table(*headings: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for number, heading in enumerate(headings):
        table.add_column(heading, justify="right" if number else "left", overflow="fold")
    return table


def _row(table: Table, label: str, estimate: Estimate, sampled: int) -> None:
    share = "-" if estimate.share is None else f"{estimate.share:.1%}"
    interval = f"{estimate.interval.low:.1%} - {estimate.interval.high:.1%}"
    table.add_row(label, share, interval, f"{estimate.decided:,}", f"{sampled:,}", f"{estimate.population:,}")


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"
