"""The tables of the page: a line for each figure, with the value of each dataset and their difference."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from data_engine.report.figures import Figures
from data_engine.report.shown import difference, duration, moment, number, short, size


@dataclass(frozen=True, slots=True)
class Row:
    """A line of a table: the value of each dataset, and how the first differs from the second, if there are two."""

    label: str
    values: tuple[str, ...]
    difference: str = ""


def row(label: str, values: Sequence[Any], shown: Callable[[Any], str] = number) -> Row:
    return Row(label, tuple(map(shown, values)), difference(values[0], values[-1], shown))


def cards(found: Figures) -> list[tuple[str, str]]:
    totals = found.totals
    medians = {d.measure.key: d.summary()["p50"] for d in found.distributions}
    good = totals["images"] - totals["failed"]
    rate = found.throughput.as_json()["images_per_second"]
    return [
        (_brief(totals["images"]), "images"),
        (_brief(totals["masks"]), "masks"),
        (number(totals["masks"] / good if good else None), "masks an image"),
        (_brief(totals["failed"]), "failed images"),
        (number(medians["predicted_iou"]), "median predicted IoU"),
        (number(medians["stability_score"]), "median stability"),
        (number(rate), "images a second"),
    ]


def totals(figures: Sequence[Figures]) -> list[Row]:
    totals = [found.totals for found in figures]

    def of(key: str) -> list[Any]:
        return [each[key] for each in totals]

    good = [each["images"] - each["failed"] for each in totals]
    return [
        row("images", of("images")),
        row("failed", of("failed")),
        row("without masks", of("images_without_masks")),
        row("pixels", of("pixels"), short),
        row("masks", of("masks")),
        row("masks an image", [each["masks"] / n if n else None for each, n in zip(totals, good, strict=True)]),
        row("small masks", of("masks_small")),
        row("medium masks", of("masks_medium")),
        row("large masks", of("masks_large")),
        row("shards with commits", of("shards")),
        row("damaged input shards", of("damaged_shards")),
        row("commits", of("commits")),
        row("masks files", of("bytes_masks"), size),
        row("images files", of("bytes_images"), size),
        row("bytes a mask", [each["bytes_masks"] / each["masks"] if each["masks"] else None for each in totals]),
    ]


def facts(figures: Sequence[Figures]) -> list[Row]:
    facts = [found.facts for found in figures]

    def of(label: str, key: str, shown: Callable[[Any], str] = str) -> Row:
        return row(label, [shown(each[key]) for each in facts], str)

    origins = [_origin(each["made_from"]) for each in facts]
    return [
        *([row("made from", origins, str)] if any(origins) else []),
        of("input", "input"),
        of("limit", "limit", lambda value: "none" if value is None else number(value)),
        of("passed over in the input", "skipped", _counts),
        of("model", "model"),
        of("model sha256", "model_sha256"),
        of("data-engine", "code_versions", ", ".join),
        of("schema version", "schema_version"),
        of("fingerprint of the plan", "fingerprint"),
        of("planned (UTC)", "planned_at", moment),
        of("complete (UTC)", "completed_at", lambda value: moment(value) or "not yet"),
    ]


def _origin(made_from: Mapping[str, Any] | None) -> str:
    """Of a replay or a corrected dataset: its masks are not what the settings and the model below would give."""
    if made_from is None:
        return ""
    version = made_from.get("corrections")
    if version is None:
        return f"{made_from['dataset']}, replayed"
    which = ", only images that are done" if made_from.get("only_done") else ""
    return f"{made_from['dataset']}, as people corrected it (version {version}){which}"


def failures(figures: Sequence[Figures]) -> list[Row]:
    kinds = dict.fromkeys(failure["type"] for found in figures for failure in found.failures)
    counts = [{failure["type"]: failure["images"] for failure in found.failures} for found in figures]
    return [row(kind, [each.get(kind, 0) for each in counts]) for kind in kinds]


def speed(figures: Sequence[Figures]) -> list[Row]:
    speeds = [found.throughput for found in figures]
    rates = [speed.as_json()["images_per_second"] for speed in speeds]
    return [
        row("images a second", rates),
        row("working time", [speed.seconds for speed in speeds], duration),
        row("first commit (UTC)", [moment(speed.first_commit) for speed in speeds], str),
        row("last commit (UTC)", [moment(speed.last_commit) for speed in speeds], str),
    ]


def stages(figures: Sequence[Figures]) -> list[Row]:
    stages = dict.fromkeys(stage for found in figures for stage in found.throughput.stage_seconds)
    return [row(stage, [found.throughput.stage_seconds.get(stage, 0.0) for found in figures]) for stage in stages]


def duplicates(figures: Sequence[Figures]) -> list[Row]:
    if not any(found.duplicates for found in figures):
        return []
    found = [each.duplicates or {"version": "not looked for", "reasons": {}} for each in figures]
    reasons = sorted({reason for each in found for reason in each["reasons"]})
    return [
        row("version", [each["version"] for each in found], str),
        row("duplicates of kept images", [each.get("images") for each in found]),
        *(row(f"of them {reason}", [each["reasons"].get(reason) for each in found]) for reason in reasons),
        row("groups", [each.get("clusters") for each in found]),
    ]


def settings(figures: Sequence[Figures]) -> list[Row]:
    flat = [dict(_flat(found.facts["config"])) for found in figures]
    names = dict.fromkeys(name for each in flat for name in each)
    return [row(name, [_setting(each.get(name)) for each in flat], str) for name in sorted(names)]


def _flat(config: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    pairs: list[tuple[str, Any]] = []
    for name, value in config.items():
        inner = isinstance(value, dict)
        pairs += _flat(value, f"{prefix}{name}.") if inner else [(f"{prefix}{name}", value)]
    return pairs


def _setting(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return "–" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _counts(counts: dict[str, int]) -> str:
    return "; ".join(f"{count:,} {reason}" for reason, count in counts.items()) or "nothing"


def _brief(count: int) -> str:
    """For large print: in full below a million."""
    return number(count) if count < 1_000_000 else short(count)
