"""What the scheduler wants done. `events.py` is what it is told."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Assign:
    """Give the shard to the worker. `careful`: alone, image by image. `quarantined`: image id -> why it is left out."""

    worker: str
    shard: str
    careful: bool = False
    quarantined: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Leave:
    """Tell the worker that the shard is no longer its own."""

    worker: str
    shard: str


@dataclass(frozen=True, slots=True)
class Dismiss:
    """Kill the worker. The scheduler has forgotten it already."""

    worker: str
    reason: str


@dataclass(frozen=True, slots=True)
class GiveUp:
    """The set-up is wrong: end the job."""

    reason: str


Command = Assign | Leave | Dismiss | GiveUp
