"""Which image ended the process of earlier local runs: suspects are tried alone, and left out once that is certain.

Of what a dead process held nobody knows what killed it, and a process cannot tell its own end from somebody's kill -9.
So one death condemns nobody: what was in flight is worked on alone by the next run, and who dies alone again is it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from data_engine.pipeline.in_flight import DeadRun, Machine, Position, dead_runs, reading
from data_engine.pipeline.plan import Remaining

DEATHS = 2  # of processes that crashed or ran out of memory, at one image, which was alone in one of them at least
KILLS = 5  # of processes that were killed, nobody knows why, at one image, which was alone in all of them but one


@dataclass(frozen=True, slots=True)
class Death:
    """Of a process, while it had an image."""

    how: str
    alone: bool
    certain: bool
    """It did not come from outside."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """By shard, what earlier runs died at that is not committed yet."""

    alone: dict[str, frozenset[int]] = field(default_factory=dict)
    """Images that are to be worked on, or read (`reading`), with no other in flight."""
    left_out: dict[str, dict[int, str]] = field(default_factory=dict)
    """Images that are not to be touched again, and why."""

    @property
    def suspects(self) -> int:
        return sum(map(len, self.alone.values()))

    @property
    def condemned(self) -> int:
        return sum(map(len, self.left_out.values()))


def verdict(folder: Path | None, todo: Mapping[str, Remaining], machine: Machine) -> Verdict:
    """From what dead runs have left in `folder`. What is of no use any more is removed there.

    todo: where each unfinished shard goes on. What lies before that is committed.
    """

    def open_still(position: Position) -> bool:
        shard, number = position
        start = todo.get(shard)
        return start is not None and max(number, reading(number)) >= start.image

    runs = []
    for run in dead_runs(folder):
        if any(open_still(position) for position, _ in run.held) or any(map(open_still, run.through)):
            runs.append(run)
        else:
            with suppress(OSError):
                run.file.unlink(missing_ok=True)
    alone: dict[str, set[int]] = defaultdict(set)
    left_out: dict[str, dict[int, str]] = defaultdict(dict)
    for (shard, number), deaths in _deaths(runs, machine).items():
        if not open_still((shard, number)):
            continue
        if (reason := _condemned(deaths, read=number >= 0)) is not None:
            left_out[shard][number] = reason
        else:
            alone[shard].add(number)
    return Verdict({shard: frozenset(numbers) for shard, numbers in alone.items()}, dict(left_out))


def _deaths(runs: Iterable[DeadRun], machine: Machine) -> dict[Position, list[Death]]:
    """Since each image was last worked on without harm."""
    deaths: dict[Position, list[Death]] = defaultdict(list)
    for run in runs:
        for position in run.through:
            deaths.pop(position, None)
        if (ended := _how_it_ended(run, machine)) is not None:
            how, certain = ended
            for position, alone in run.held:
                deaths[position].append(Death(how, alone, certain))
    return deaths


def _how_it_ended(run: DeadRun, machine: Machine) -> tuple[str, bool] | None:
    """(how, whether that came from inside), or None for what is no image's fault: it had been told to stop, the whole
    machine went down, or it was another machine."""
    if run.crash is not None:
        return f"it crashed ({run.crash})", True
    if run.told_to_stop or run.machine.boot != machine.boot:
        return None
    if (
        run.machine.oom_kills is not None
        and machine.oom_kills is not None
        and machine.oom_kills > run.machine.oom_kills
    ):
        return "it was killed when memory ran out", True
    return "it was killed", False


def _condemned(deaths: list[Death], read: bool) -> str | None:
    """Why an image is left out. Of one that was not `read` yet kills say nothing: it may have been waited for."""
    certain = [death for death in deaths if death.certain]
    if len(certain) >= DEATHS and any(death.alone for death in certain):
        of = certain
    elif read and len(deaths) >= KILLS and sum(death.alone for death in deaths) >= KILLS - 1:
        of = deaths
    else:
        return None
    return f"{len(of)} runs ended with their process at this image, the last as {of[-1].how}"
