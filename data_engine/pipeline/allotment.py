"""Which waiting shard a worker may have: suspects run alone, where they have not killed yet, some with a whole node."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from data_engine.pipeline.nodes import Nodes
from data_engine.pipeline.shard_queue import Shard, ShardQueue
from data_engine.pipeline.worker_pace import Worker


class Allotment:
    """Takes shards from the queue for workers. `workers` are all that are ready, by name, as they come and go."""

    def __init__(self, queue: ShardQueue, nodes: Nodes, workers: Mapping[str, Worker], max_in_flight: int) -> None:
        self._queue = queue
        self._nodes = nodes
        self._workers = workers
        self._max_in_flight = max_in_flight
        self._clearing: set[str] = set()  # get nothing new, to be free for a shard that needs a worker of its own
        self._whole_nodes: dict[str, Worker] = {}  # node -> the worker that has it, or had it last, for itself

    def next_for(self, name: str) -> Shard | None:
        """A shard that the worker should have now, besides what it holds. It is in the queue no longer."""
        worker = self._workers[name]
        if worker.alone or len(worker.shards) >= self._max_in_flight:
            return None
        if self.gives_way(worker) or self._clears(name, worker):
            return None
        return self._queue.take(name, not worker.shards, len(self._workers) > 1, partial(self._suits, worker))

    def given(self, worker: Worker, shard: Shard) -> None:
        """The worker is about to begin with this shard."""
        worker.alone = shard.careful
        if shard.needs_node and self._quiet_beside(worker):
            worker.has_node = True
            self._whole_nodes[worker.node] = worker

    def gone(self, name: str) -> None:
        """The worker takes no shards any longer."""
        self._clearing.discard(name)

    def gives_way(self, worker: Worker) -> bool:
        """It must be idle, because another worker has their node for itself."""
        other = self._whole_nodes.get(worker.node)
        return other is not None and other.has_node and other is not worker

    def _clears(self, name: str, worker: Worker) -> bool:
        """A suspect waits for a worker that holds nothing: this one takes nothing more until then."""
        if not worker.shards or not self._queue.has_suspect(partial(self._suits, worker)):
            self._clearing.discard(name)
        elif len(self._clearing) < self._queue.suspects:
            self._clearing.add(name)
        elif len(self._clearing) > self._queue.suspects:
            self._clearing.discard(name)
        return name in self._clearing

    def _suits(self, worker: Worker, shard: Shard) -> bool:
        """A suspect is tried where fewest died of it: the node may be what kills."""
        if shard.needs_node and not self._quiet_beside(worker):
            return False
        here = shard.nodes[worker.node]
        return not here or here <= self._nodes.fewest(shard.nodes)

    def _quiet_beside(self, worker: Worker) -> bool:
        """No other worker on its node is at work."""
        node = worker.node
        return not any(other.shards and other.node == node for other in self._workers.values() if other is not worker)
