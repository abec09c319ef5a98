"""The shards that no worker has, and the order in which they get one."""

from __future__ import annotations

import heapq
import random
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

_CROWDED_DEATHS = 2


@dataclass(frozen=True, slots=True)
class ShardTask:
    """A shard to do, and how many images it has left, if that is known."""

    id: str
    images: int | None = None


@dataclass(frozen=True, slots=True)
class Death:
    """Of a worker: where, and whether it ran its shard carefully, with no other image being decoded."""

    node: str
    careful: bool


@dataclass(slots=True, eq=False)
class Shard:
    """What is known of a shard that has been given out at least once."""

    id: str
    images: int | None  # not committed yet
    workers: list[str] = field(default_factory=list)
    failures: int = 0  # since its last commit
    preemptions: int = 0  # of workers that had it in the model, since its last commit
    died_on: Counter[str] = field(default_factory=Counter)  # node -> deaths, since a commit or a quarantined image
    nodes: Counter[str] = field(default_factory=Counter)  # node -> workers that died there and held it
    careful: bool = False
    avoid: str | None = None  # the worker on which it failed last
    raced: bool = False  # a worker of ours that had it may still commit a slice of it
    excused: int | None = None  # the answers of its store when it last failed for it, if it has committed nothing since
    crowded: int = 0  # workers that ran out of memory with it beside others on their node, since its last commit
    suspects: dict[str, list[Death]] = field(default_factory=dict)  # image -> deaths charged to it
    quarantined: dict[str, str] = field(default_factory=dict)

    @property
    def deaths(self) -> int:
        """Of workers that had it in the model, since its last commit or the last quarantined image."""
        return sum(self.died_on.values())

    @property
    def needs_node(self) -> bool:
        """Twice was no chance: whether it is what fills the memory shows where no other worker works beside it."""
        return self.crowded >= _CROWDED_DEATHS

    def blame(self, image: str | None, death: Death, how: str, image_deaths: int, image_nodes: int) -> None:
        """A worker died with this shard in the model and, perhaps, this image.

        The image is quarantined after `image_deaths` on `image_nodes` nodes, one of them at least in a careful run.
        """
        self.died_on[death.node] += 1
        if image is None or image in self.quarantined:
            return
        deaths = self.suspects.setdefault(image, [])
        if not death.careful and any(not earlier.careful for earlier in deaths):
            return  # of two runners at once, of which neither was careful
        deaths.append(death)
        count = len(deaths)
        on_nodes = len({each.node for each in deaths})
        if count >= image_deaths and on_nodes >= image_nodes and any(each.careful for each in deaths):
            self.quarantined[image] = f"it killed its worker {count} {'time' if count == 1 else 'times'}, last: {how}"
            del self.suspects[image]
            self.died_on.clear()
            self.nodes.clear()
            self.crowded = 0

    def forgive(self, node: str) -> None:
        """What died there died of the node."""
        self.died_on.pop(node, None)
        kept = {image: [each for each in deaths if each.node != node] for image, deaths in self.suspects.items()}
        self.suspects = {image: deaths for image, deaths in kept.items() if deaths}

    def progressed(self) -> None:
        """A slice was committed: what went wrong before was not for good."""
        self.failures = self.preemptions = self.crowded = 0
        self.excused = None
        self.died_on.clear()


class ShardQueue:
    """First shards that kill, for workers that hold nothing; then retries; then new ones; then other drivers'.

    New ones go from the longest to the shortest; those of unknown length come last, in the order given.
    """

    def __init__(self, tasks: Iterable[ShardTask]) -> None:
        self._new = deque(sorted(tasks, key=lambda task: -(task.images or 0)))  # lest a long one be all that is left
        if len({task.id for task in self._new}) < len(self._new):
            raise ValueError("two shards have the same id")
        self._careful: deque[Shard] = deque()
        self._again: deque[Shard] = deque()
        self._foreign: deque[Shard] = deque()  # another driver commits them: looked at last
        self._later: list[tuple[float, int, Shard, bool]] = []
        self._order = 0

    def __bool__(self) -> bool:
        """A shard is due."""
        return bool(self._new or self._again or self._careful or self._foreign)

    def __len__(self) -> int:
        """All that wait, due or not."""
        return len(self._new) + len(self._again) + len(self._careful) + len(self._foreign) + len(self._later)

    def ids(self) -> Iterator[str]:
        """Of all that wait, due or not."""
        yield from (task.id for task in self._new)
        for queue in (self._again, self._careful, self._foreign):
            yield from (shard.id for shard in queue)
        yield from (entry[2].id for entry in self._later)

    @property
    def only_suspects(self) -> bool:
        """Nothing is due that any worker may have."""
        return not (self._new or self._again or self._foreign)

    @property
    def suspects(self) -> int:
        """Due shards that need a worker of their own."""
        return len(self._careful)

    def has_suspect(self, suits: Callable[[Shard], bool]) -> bool:
        return any(suits(shard) for shard in self._careful)

    def take(self, worker: str, holds_nothing: bool, others: bool, suits: Callable[[Shard], bool]) -> Shard | None:
        """The next shard for this worker, of the suspects one that `suits` it.

        One that has just failed on it is left to the `others`, for one turn.
        """
        shard = self._first(self._careful, worker, others, suits) if holds_nothing and self._careful else None
        if shard is None and self._again:
            shard = self._first(self._again, worker, others)
        if shard is None and self._new:
            task = self._new.popleft()
            shard = Shard(task.id, task.images)
        if shard is None and self._foreign:
            shard = self._foreign.popleft()
        return shard

    def _first(
        self, queue: deque[Shard], worker: str, others: bool, suits: Callable[[Shard], bool] | None = None
    ) -> Shard | None:
        for place, shard in enumerate(queue):
            if suits is not None and not suits(shard):
                continue
            if shard.avoid == worker and others:
                shard.avoid = None
                continue
            del queue[place]
            return shard
        return None

    def put(self, shard: Shard) -> None:
        (self._careful if shard.careful else self._again).append(shard)

    def put_later(self, shard: Shard, at: float, foreign: bool = False) -> None:
        self._order += 1
        heapq.heappush(self._later, (at, self._order, shard, foreign))

    def due(self, now: float) -> None:
        """Makes takable what was put for until now."""
        while self._later and self._later[0][0] <= now:
            _, _, shard, foreign = heapq.heappop(self._later)
            if foreign and not shard.careful:
                self._foreign.append(shard)
            else:
                self.put(shard)

    def remove(self, shard: Shard) -> None:
        """Takes out a shard that was given out before, wherever it is. New ones are not searched: they are many."""
        for queue in (self._again, self._careful, self._foreign):
            if shard in queue:
                queue.remove(shard)
                return
        self._later = [entry for entry in self._later if entry[2] is not shard]
        heapq.heapify(self._later)

    def shuffle(self, chance: random.Random) -> None:
        """Mixes the new ones; the longest still tend to come first."""
        self._new = deque(sorted(self._new, key=lambda task: -(task.images or 1) * chance.uniform(0.5, 1)))
