"""What each run of the job did, from `_runs/<run>/metrics.jsonl`: a convenience of the job, so it may be missing."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Any

from data_engine.errors import DataEngineError
from data_engine.pipeline.run_log import RUNS_FOLDER
from data_engine.storage import filesystem, join, read_bytes, translated


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A run, as its last line tells."""

    run: str
    started: str  # UTC, ISO 8601
    ended: str
    seconds: float
    images: int
    masks: int
    failures: dict[str, int]
    images_per_second: float

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def read_runs(root: str) -> list[Run]:
    """Runs in the order in which they started. One whose file is missing, damaged or empty is left out."""
    folder = join(root, RUNS_FOLDER)
    fs, path = filesystem(folder)
    try:
        with translated(folder):
            files = [file for file in fs.find(path) if file.endswith("/metrics.jsonl")]
    except (DataEngineError, FileNotFoundError):
        return []
    names = [file.split("/")[-2] for file in files]
    runs = [run for name in names if (run := _read(join(folder, name, "metrics.jsonl"))) is not None]
    return sorted(runs, key=lambda run: (run.started, run.run))


def _read(uri: str) -> Run | None:
    try:
        last = json.loads(read_bytes(uri).rstrip().rsplit(b"\n", 1)[-1])
        ended = datetime.fromisoformat(last["time"])
        return Run(
            run=str(last["run"]),
            started=(ended - timedelta(seconds=last["seconds"])).isoformat(timespec="seconds"),
            ended=ended.isoformat(timespec="seconds"),
            seconds=float(last["seconds"]),
            images=int(last["images"]),
            masks=int(last["masks"]),
            failures={str(kind): int(count) for kind, count in last["failures"].items()},
            images_per_second=float(last["images_per_second"]),
        )
    except (DataEngineError, FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
        return None
