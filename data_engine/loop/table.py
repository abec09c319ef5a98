"""The rounds side by side: plain values for machines, Markdown and a table for people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.table import Table

Row = dict[str, Any]

_SCORES = {
    "1 click, mean IoU": ("clicks", "1", "highest_predicted_iou", "all"),
    "1 click, best of three": ("clicks", "1", "best_of_three", "all"),
    "3 clicks, mean IoU": ("clicks", "3", "highest_predicted_iou", "all"),
    "5 clicks, mean IoU": ("clicks", "5", "highest_predicted_iou", "all"),
    "box, mean IoU": ("boxes", "highest_predicted_iou", "all"),
    "automatic, AR@1000": ("automatic", "AR@1000", "all"),
    "predicted IoU, mean": ("calibration", "mean_predicted"),
    "automatic, masks an image": ("automatic", "masks_per_image"),
}


def scores(evaluation: dict[str, Any] | None) -> dict[str, float]:
    """The figures of an evaluation that are shown, by name; those that were not measured are left out."""
    found = {}
    for name, path in _SCORES.items():
        value: Any = evaluation
        for key in path:
            value = value.get(key) if isinstance(value, dict) else None
        if value is not None:
            found[name] = float(value)
    return found


def change(rows: Sequence[Row]) -> dict[str, float]:
    """The last row's scores minus the first one's."""
    if len(rows) < 2:
        return {}
    first, last = rows[0]["scores"], rows[-1]["scores"]
    return {name: round(last[name] - first[name], 4) for name in first if name in last}


def as_table(rows: Sequence[Row]) -> Table:
    """A column a round."""
    table = Table(box=None, pad_edge=False)
    header, *lines = _cells(rows)
    table.add_column(header[0])
    for column in header[1:]:
        table.add_column(column, justify="right")
    for line in lines:
        table.add_row(*line)
    return table


def as_markdown(rows: Sequence[Row]) -> str:
    header, *lines = _cells(rows)
    table = [header, ["---", *["---:"] * (len(header) - 1)], *lines]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in table) + "\n"


def _cells(rows: Sequence[Row]) -> list[list[str]]:
    """Lines of cells: the header, then a line a figure."""
    changed = change(rows)
    header = ["", *("start" if not row["round"] else f"round {row['round']}" for row in rows)]
    lines = [header + (["change"] if changed else [])]
    facts = {
        "stage": [row.get("stage") or "" for row in rows],
        "masks made": [_count(row.get("masks")) for row in rows],
        "that pass the filters": [_count(row.get("masks_kept")) for row in rows],
        "images with one": [_count(row.get("images_kept")) for row in rows],
        "training steps": [_count(row.get("steps")) for row in rows],
        "minutes": [f"{sum(row['seconds'].values()) / 60:.1f}" for row in rows],
    }
    lines += [[name, *cells] + ([""] if changed else []) for name, cells in facts.items()]
    for name in _SCORES:
        if any(name in row["scores"] for row in rows):
            cells = [_figure(row["scores"].get(name), name) for row in rows]
            last = [_figure(changed.get(name), name, sign="+")] if changed else []
            lines.append([name, *cells, *last])
    return lines


def _count(value: int | None) -> str:
    return "" if value is None else f"{value:,}"


def _figure(value: float | None, name: str, sign: str = "") -> str:
    digits = 1 if name == "automatic, masks an image" else 3
    return "" if value is None else f"{value:{sign}.{digits}f}"
