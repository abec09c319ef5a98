"""How many masks to judge for an interval of a given width: `python -m data_engine.human_audit.sizes`.

For a simple random sample of a run of a million masks or more, of which the given share is accepted.
"""

from __future__ import annotations

import sys

from data_engine.human_audit.intervals import wilson

WIDTHS = (0.10, 0.06, 0.04, 0.02, 0.01)
PRECISIONS = (0.5, 0.8, 0.9, 0.95, 0.98)


def masks_needed(precision: float, width: float) -> int:
    """The smallest sample whose 95 % interval is no wider than `width`, where the share seen is `precision`."""
    low, high = 1, 1
    while wilson(precision, high).width > width:
        low, high = high, 2 * high
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if wilson(precision, middle).width <= width else (middle + 1, high)
    return high


def table() -> str:
    """In Markdown: a row for each width."""
    lines = [
        "| width of the interval | " + " | ".join(f"{precision:.0%} accepted" for precision in PRECISIONS) + " |",
        "|---" + "|---:" * len(PRECISIONS) + "|",
    ]
    for width in WIDTHS:
        needed = " | ".join(f"{masks_needed(precision, width):,}" for precision in PRECISIONS)
        points = "1 point" if width == 0.01 else f"{100 * width:g} points"
        lines.append(f"| {points} (± {50 * width:g}) | {needed} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.stdout.write(table() + "\n")
