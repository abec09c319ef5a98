"""What Ray says when a worker is gone, put as whose fault it is and why."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ray
from ray.exceptions import (
    ActorDiedError,
    ActorUnavailableError,
    GetTimeoutError,
    NodeDiedError,
    OutOfMemoryError,
    OwnerDiedError,
    RayActorError,
    RayTaskError,
    WorkerCrashedError,
)

from data_engine import __version__
from data_engine.errors import ModelFailure
from data_engine.pipeline.policy import Loss
from data_engine.pipeline.ray_worker import Unfit
from data_engine.storage import redact

_LONGEST = 500  # characters of a reason


def loss_of(error: Exception, working: bool, node_lives: Callable[[], bool]) -> tuple[Loss, str]:
    """(whose fault, why). `working`: the worker had loaded its model. `node_lives` is asked only if that matters."""
    text = redact(" ".join(str(error).split()))
    if isinstance(error, RayTaskError):  # raised by our own code in the worker
        cause = error.cause if error.cause is not None else error
        reason = redact(" ".join(str(cause).split()))[:_LONGEST]
        if isinstance(error, (ModelFailure, Unfit)) or not working:
            return Loss.UNFIT, reason if isinstance(cause, Unfit) else f"{type(cause).__name__}: {reason}"
        return Loss.DIED, f"{type(cause).__name__}: {reason}"
    if isinstance(error, ActorDiedError) and getattr(error, "_actor_init_failed", False):
        return Loss.UNFIT, _never_began(str(error))
    if isinstance(error, OutOfMemoryError) or "OutOfMemory" in text or "out of memory" in text.lower():
        return Loss.OUT_OF_MEMORY, "the node ran out of memory and the worker was killed"
    if isinstance(error, (NodeDiedError, OwnerDiedError)) or not node_lives():
        return Loss.PREEMPTED, "its node is gone"
    if isinstance(error, ActorUnavailableError):  # so speaks the network; a process that dies is ActorDiedError
        return Loss.PREEMPTED, "its node cannot be reached"
    if isinstance(error, ActorDiedError) and getattr(error, "preempted", False):
        return Loss.PREEMPTED, "its node was taken away"
    if isinstance(error, (RayActorError, WorkerCrashedError)):
        return Loss.DIED, _last_words(text)
    return Loss.DIED, text[:300]


def _never_began(message: str) -> str:
    """Of Ray's message with its traceback, what kept our class from being made: an import, as a rule."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    cause = redact(lines[-1] if lines else "no reason given")[:_LONGEST]
    return (
        f"data-engine cannot be started on the node ({cause}): install data-engine[ray] {__version__} there, with the "
        "Python that the node's Ray runs in"
    )


def _last_words(text: str) -> str:
    """Of Ray's long message, how the process ended."""
    for marker in ("Worker exit detail:", "death cause:", "The actor is dead because"):
        if marker in text:
            return text.split(marker, 1)[1].strip()[:300]
    return text[:300]


def node_of(actor: Any) -> str | None:
    """The node on which an actor is or was, also if it has never answered. Ray has no public call for it yet."""
    try:
        from ray._private.state import state

        node = state.actor_table(actor._actor_id.hex())["Address"]["NodeID"]
    except (ImportError, AttributeError, KeyError, TypeError, GetTimeoutError):
        return None
    return node if any(each["NodeID"] == node for each in ray.nodes()) else None


def draining_nodes() -> set[str]:
    """Nodes that the cloud or an operator is about to take away. Ray has no public call for it yet."""
    try:
        from ray._private.state import state

        return set(state.get_draining_nodes())
    except (ImportError, AttributeError, GetTimeoutError):
        return set()


def started_actors() -> dict[str, str] | None:
    """Of this job's actors, those whose process has been started: id -> node. Ray has no public call for it yet.

    One that waits for room on the cluster has none. None where Ray does not say.
    """
    try:
        from ray._private.state import state

        job = ray.JobID(bytes.fromhex(ray.get_runtime_context().get_job_id()))
        tables = [state.actor_table(None, job, name) for name in ("PENDING_CREATION", "ALIVE")]
        return {id: actor["Address"]["NodeID"] for table in tables for id, actor in table.items() if actor["Pid"]}
    except (ImportError, AttributeError, KeyError, TypeError, GetTimeoutError):
        return None
