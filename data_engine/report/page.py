"""The page: what is shown of one dataset, or of two with their differences, and how it is worded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from data_engine import __version__
from data_engine.report import tables
from data_engine.report.charts import histogram, rate_chart
from data_engine.report.distribution import bars
from data_engine.report.figures import Figures, funnel
from data_engine.report.run import ReportSettings, Side
from data_engine.report.sheets import Pick, Sheet
from data_engine.report.shown import difference, duration, fraction, moment, number

_HERE = Path(__file__).parent
_LABELS = ("this", "against")
_RUNS = 20
_SUMMARY = {
    "mean": "mean",
    "min": "least",
    "p5": "5 %",
    "p25": "25 %",
    "p50": "median",
    "p75": "75 %",
    "p95": "95 %",
    "max": "largest",
}


def render(sides: Sequence[Side], settings: ReportSettings) -> str:
    """The whole page. Whatever comes from data is escaped by Jinja; nothing is loaded from elsewhere."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        autoescape=True,
        loader=FileSystemLoader(_HERE),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    template = environment.get_template("page.html")
    figures = [side.figures for side in sides]
    return template.render(
        style=Markup((_HERE / "page.css").read_text("utf-8").strip()),  # noqa: S704 - of this package
        two=len(sides) > 1,
        labels=_LABELS[: len(sides)],
        names=[found.root for found in figures],
        sides=[_side(found, i) for i, found in enumerate(figures)],
        cards=tables.cards(figures[0]),
        totals=tables.totals(figures),
        facts=tables.facts(figures),
        distributions=[_distribution(figures, i) for i in range(len(figures[0].distributions))],
        funnel=_funnel(figures),
        failures=tables.failures(figures),
        speed=tables.speed(figures),
        stages=tables.stages(figures),
        duplicates=tables.duplicates(figures),
        sheets=_sheets(sides),
        missing=_missing(sides),
        settings=tables.settings(figures),
        version=__version__,
        seed=settings.seed,
    )


def _side(found: Figures, side: int) -> dict[str, Any]:
    speed, facts = found.throughput, found.facts
    since = f" since {moment(facts['completed_at'])} UTC" if facts["completed_at"] else ""
    state = f"complete{since}" if facts["complete"] else "not complete"
    runs = [
        {
            "run": run.run,
            "began": moment(run.started),
            "lasted": duration(run.seconds),
            "images": number(run.images),
            "masks": number(run.masks),
            "failed": number(sum(run.failures.values())),
            "rate": number(run.images_per_second),
        }
        for run in found.runs[-_RUNS:]
    ]
    chart = rate_chart(speed.rates, speed.seconds, speed.pauses, "images a second", side) if speed.rates else None
    return {
        "label": _LABELS[side],
        "root": found.root,
        "subtitle": f"{number(found.totals['images'])} images, {number(found.totals['masks'])} masks by "
        f"{facts['model']} ({facts['model_sha256'][:12]}) · {state}",
        "warnings": facts["warnings"],
        "failures": found.failures,
        "runs": runs,
        "more_runs": max(0, len(found.runs) - _RUNS),
        "rate_chart": chart,
        "pauses": f"{len(speed.pauses)} pause{'s' if len(speed.pauses) > 1 else ''}" if speed.pauses else "",
        "clusters": found.duplicates["largest"] if found.duplicates else (),
    }


def _distribution(figures: Sequence[Figures], index: int) -> dict[str, Any]:
    found = [each.distributions[index] for each in figures]
    measure = found[0].measure
    summaries = [each.summary() for each in found]
    names = _LABELS[: len(figures)] if len(figures) > 1 else ("",)
    chart = histogram(bars(found), names, measure.axis, measure.counted, summaries, measure.title)
    shown = number if measure.whole else fraction
    lines = [[shown(each[key]) for key in _SUMMARY] for each in summaries]
    if len(summaries) > 1:  # without the share: the table is narrow
        changes = [difference(summaries[0][key], summaries[1][key], shown).partition(" (")[0] for key in _SUMMARY]
        lines.append(changes)
    return {"title": measure.title, "chart": chart, "columns": list(_SUMMARY.values()), "lines": lines}


def _funnel(figures: Sequence[Figures]) -> list[dict[str, Any]]:
    steps = []
    for each in zip(*(funnel(found.totals) for found in figures), strict=True):
        cells = [
            {
                "rejected": number(step["rejected"]) if step["rejected"] else "–",
                "left": number(step["left"]),
                "width": round(100 * step["left"] / (found.totals["candidates"] or 1), 3),
            }
            for step, found in zip(each, figures, strict=True)
        ]
        changed = difference(each[0]["left"], each[-1]["left"])
        steps.append({"label": each[0]["step"], "cells": cells, "difference": changed})
    return steps


def _sheets(sides: Sequence[Side]) -> list[dict[str, Any]]:
    sheets = zip(*(side.figures.sheets for side in sides), strict=True)
    return [
        {
            "title": each[0].title,
            "sides": [_tiles(side, sheet) for side, sheet in zip(sides, each, strict=True)],
        }
        for each in sheets
    ]


def _tiles(side: Side, sheet: Sheet) -> list[dict[str, Any]]:
    tiles = []
    for pick in sheet.picks:
        picture = side.pictures.get((pick.image_id, pick.mask_id))
        tiles.append(
            {
                "image_id": pick.image_id,
                "uri": picture.uri if picture else None,
                "missing": picture.missing if picture else "its row was not found",
                "width": picture.width if picture else 0,
                "height": picture.height if picture else 0,
                "value": _chosen_for(sheet, pick),
            }
        )
    return tiles


def _chosen_for(sheet: Sheet, pick: Pick) -> str:
    if pick.mask_id is None:
        return f"{pick.value:,} mask{'' if pick.value == 1 else 's'}"
    share = sheet.key == "largest_masks"
    return f"{100 * pick.value:.1f} % of the image" if share else f"stability {pick.value:.3f}"


def _missing(sides: Sequence[Side]) -> str:
    missing = sum(picture.uri is None for side in sides for picture in side.pictures.values())
    return f"{missing} pictures are not here: each says why." if missing else ""
