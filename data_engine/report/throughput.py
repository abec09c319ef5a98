"""Images a second over time, from the times of the commits. Time in which nothing ran is left out."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from typing import Any

import numpy as np

from data_engine.dataset.commits import CommitRecord
from data_engine.report.runs import Run

_MOST_BARS = 60
_COMMITS_A_BAR = 3  # on average: fewer would show when slices end rather than how fast the work is
_SHORTEST_PAUSE_S = 600.0


@dataclass(frozen=True, slots=True)
class Throughput:
    """Equal stretches of working time and the images committed in each."""

    images: int
    seconds: float  # working time
    rates: tuple[float, ...]  # images a second of each stretch
    pauses: tuple[float, ...]  # where in the working time (seconds) one was cut out
    stage_seconds: dict[str, float]  # summed over threads and workers
    first_commit: str
    last_commit: str

    def as_json(self) -> dict[str, Any]:
        width = self.seconds / len(self.rates) if self.rates else 0.0
        return {
            "working_seconds": round(self.seconds, 1),
            "images_in_working_seconds": self.images,
            "images_per_second": round(self.images / self.seconds, 4) if self.seconds else None,
            "over_time": [
                {
                    "from_seconds": round(i * width, 1),
                    "to_seconds": round((i + 1) * width, 1),
                    "images_per_second": rate,
                }
                for i, rate in enumerate(self.rates)
            ],
            "pauses_at_seconds": [round(pause, 1) for pause in self.pauses],
            "stage_seconds": self.stage_seconds,
            "first_commit": self.first_commit,
            "last_commit": self.last_commit,
        }


def throughput(records: Sequence[CommitRecord], runs: Sequence[Run]) -> Throughput:
    """The images of a first commit count if it is known when the run before it began; else time starts with it."""
    commits = sorted((time, record.totals.images) for record in records if (time := _seconds(record.committed_at)))
    stages: Counter[str] = Counter()
    for record in records:
        stages.update(record.timings)
    told = sorted(record.committed_at for record in records if record.committed_at)
    starts = sorted(time for run in runs if (time := _seconds(run.started)))
    moments, pauses = _working_time(commits, starts)
    total = moments[-1][0] if moments else 0.0
    return Throughput(
        images=sum(images for _, images in moments) if total else 0,
        seconds=total,
        rates=_rates(moments, total) if total else (),
        pauses=tuple(pauses),
        stage_seconds={stage: round(seconds, 2) for stage, seconds in sorted(stages.items())},
        first_commit=told[0] if told else "",
        last_commit=told[-1] if told else "",
    )


def _rates(moments: Sequence[tuple[float, int]], total: float) -> tuple[float, ...]:
    """Images a second of equal stretches. A commit's images are spread over the time since the one before it."""
    size = min(_MOST_BARS, max(1, len(moments) // _COMMITS_A_BAR))
    edges = np.linspace(0, total, size + 1)
    times, images = np.array([(0.0, 0), *moments], float).T
    done = np.interp(edges, times, images.cumsum())
    return tuple(round(float(count), 4) for count in np.diff(done) * size / total)


def _working_time(
    commits: Sequence[tuple[float, int]], starts: Sequence[float]
) -> tuple[list[tuple[float, int]], list[float]]:
    """((working time, images) of each commit, working times of the pauses)

    After a pause, time goes on where the run that ended it began, or where its first commit was made.
    """
    moments: list[tuple[float, int]] = []
    pauses: list[float] = []
    longest = _longest_gap(commits)
    clock, before = 0.0, None
    for time, images in commits:
        if before is not None and time - before <= longest:
            clock += time - before
            moments.append((clock, images))
        else:
            if before is not None:
                pauses.append(clock)
            began = starts[bisect_right(starts, time) - 1] if starts and starts[0] <= time else None
            if began is not None and (before is None or began >= before):
                clock += time - began
                moments.append((clock, images))
        before = time
    return moments, pauses


def _longest_gap(commits: Sequence[tuple[float, int]]) -> float:
    """Seconds between two commits beyond which nothing was running."""
    gaps = sorted(later[0] - earlier[0] for earlier, later in pairwise(commits))
    typical = gaps[(len(gaps) - 1) // 2] if gaps else 0.0
    return max(_SHORTEST_PAUSE_S, 20 * typical)


def _seconds(time: str) -> float | None:
    try:
        return datetime.fromisoformat(time).timestamp()
    except ValueError:
        return None
