"""When shards are retried, when workers and jobs are given up, and whose fault a loss is."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """When to retry, when to give up. Times are seconds."""

    max_in_flight: int = 2  # shards a worker holds: one in the model, the others being fetched
    shard_retries: int = 3  # further tries of a shard that cannot be read
    retry_pause: float = 5.0  # doubled at every retry
    foreign_pause: float = 30.0  # before looking again at a shard that another driver commits
    image_deaths: int = 2  # workers that one image may kill; on two nodes, where there are two
    shard_deaths: int = 8  # workers that one shard may kill before it is set aside, when no image can be blamed
    shard_preemptions: int = 5  # workers lost with their nodes at one shard before that is charged to it
    node_deaths: int = 5  # workers that may die on a node before any image is done there
    image_timeout: float = 1800.0  # a worker that says nothing for so long is killed
    give_up_after: int = 5  # workers lost in a row, or shards failed, before anything is done; later four times as many
    speculate: float | None = 2.0  # a second runner, once the first would take so many times longer than a new one
    store_pause: float = 10.0  # in which nothing is given out after the store has failed; doubled at every round
    store_longest_pause: float = 120.0
    store_patience: float = 3600.0  # a store that takes nothing for so long ends the job


class Loss(Enum):
    """Why a worker is gone, and whose fault it is."""

    DIED = "died"  # charged to the image it held
    OUT_OF_MEMORY = "out of memory"  # charged likewise, where no neighbour on the node can have been the cause
    TIMED_OUT = "timed out"  # charged likewise
    PREEMPTED = "preempted"  # nobody's: its node went; charged if that happens to one shard again and again
    UNFIT = "unfit"  # the node's, if that is known, which should get no more workers
    STORE_AWAY = "store away"  # nobody's: it could not load its model
    STOPPED = "stopped"  # asked to
