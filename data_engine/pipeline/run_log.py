"""`_runs/<run>/metrics.jsonl` in the output: what a run did over time, one JSON object a line.

The file is written whole each time, as object stores cannot append; its name is its run's, so nobody else writes it.
A run that cannot write it goes on: it is a convenience, and the commits tell the same story.
"""

from __future__ import annotations

import json
import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from data_engine.errors import DataEngineError
from data_engine.pipeline.commit import put
from data_engine.pipeline.events import Event, ImageDone, SliceCommitted
from data_engine.pipeline.plan import now
from data_engine.retry import Patience
from data_engine.storage import join

log = logging.getLogger(__name__)

RUNS_FOLDER = "_runs"
_FIRST_PAUSE_S = 30.0
_LINES = 2000
_PATIENCE = Patience(seconds=3.0)  # the job waits while this is written


class RunLog:
    """Counts what is reported and writes it now and then, more rarely the longer the run lasts."""

    def __init__(self, root: str, run_id: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._uri = join(root, RUNS_FOLDER, run_id, "metrics.jsonl")
        self.run_id = run_id
        self._clock = clock
        self._begun = clock()
        self._due = self._begun + _FIRST_PAUSE_S
        self._lines: list[str] = []
        self._state: Mapping[str, Any] = {}
        self._counts: Counter[str] = Counter()
        self._failures: Counter[str] = Counter()
        self._stages: Counter[str] = Counter()

    def event(self, event: Event) -> None:
        if isinstance(event, ImageDone):
            self._counts["images"] += 1
            self._counts["masks"] += event.masks
            if event.error_type:
                self._failures[event.error_type] += 1
        elif isinstance(event, SliceCommitted):
            self._counts["images_committed"] += event.record.totals.images
            self._counts["masks_committed"] += event.record.totals.masks
            self._stages.update(event.record.timings)

    def sample(self, state: Mapping[str, Any] | None = None) -> None:
        """Adds a line and writes the file, if it is time. `state`: what the engine knows besides."""
        self._state = state or self._state
        if self._clock() >= self._due:
            elapsed = self._clock() - self._begun
            self._due = self._clock() + max(_FIRST_PAUSE_S, elapsed / _LINES)
            self.write()

    def write(self) -> None:
        seconds = self._clock() - self._begun
        line = {
            "time": now(),
            "run": self.run_id,
            "seconds": round(seconds, 1),
            **{name: self._counts[name] for name in ("images", "masks", "images_committed", "masks_committed")},
            "images_per_second": round(self._counts["images"] / seconds, 3) if seconds else 0.0,
            "failures": dict(self._failures),
            "stage_seconds": {name: round(value, 2) for name, value in self._stages.items()},
            **self._state,
        }
        self._lines.append(json.dumps(line))
        try:
            put(self._uri, ("\n".join(self._lines) + "\n").encode(), _PATIENCE)
        except DataEngineError as error:
            log.warning("the run's metrics were not written: %s", error)
