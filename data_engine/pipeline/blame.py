"""Whose fault the loss of a worker is: its node's, an image's, its shard's, or nobody's."""

from __future__ import annotations

from collections.abc import Iterable

from data_engine.pipeline.nodes import Nodes
from data_engine.pipeline.policy import Loss, Policy
from data_engine.pipeline.shard_queue import Death, Shard
from data_engine.pipeline.worker_pace import Worker

_CHARGED = (Loss.DIED, Loss.OUT_OF_MEMORY, Loss.TIMED_OUT)


class Blame:
    """Charges losses. What killed a worker is not known, only where it was and what it held."""

    def __init__(self, policy: Policy, nodes: Nodes) -> None:
        self._policy = policy
        self._nodes = nodes

    def node(
        self, name: str, worker: Worker | None, node: str, loss: Loss, reason: str, shards: Iterable[Shard]
    ) -> None:
        """What a loss says of its node. If the node is bad, what died there of the `shards` is forgiven."""
        if loss is Loss.UNFIT:
            self._nodes.excluded[node] = reason
        elif loss not in _CHARGED:
            self._nodes.went(node)
        elif worker is None or not worker.proven:  # many that worked and die at once may have the network in common
            at = f"shard {worker.shards[0].id}" if worker and worker.shards else f"worker {name}"
            if self._nodes.died(node, at):
                for shard in shards:
                    shard.forgive(node)

    def shards(self, worker: Worker, loss: Loss, reason: str) -> str | None:
        """What a loss says of the shards that the worker held, one at least.

        Those that may have killed it are suspects from now on; the one in the model is charged. Returns why that one
        should not be tried again, or None.
        """
        first = worker.shards[0]
        if loss is Loss.UNFIT:  # unless it is the shard, which would have one node after the other excluded
            first.failures += 1
            return reason if first.failures > self._policy.shard_retries else None
        if not self._charged(worker, loss, first):
            return None
        for shard in worker.shards:
            shard.careful = True
        if loss is Loss.OUT_OF_MEMORY and self._nodes.shared(worker.node) and not worker.has_node:
            first.crowded += 1  # nothing more: the memory may have gone to a neighbour
            return None
        for shard in worker.shards:
            shard.nodes[worker.node] += 1
        if worker.node in self._nodes.deadly:
            return None
        how = f"{loss.value} ({reason})"
        death = Death(worker.node, worker.alone)
        first.blame(worker.image, death, how, self._policy.image_deaths, 2 if self._nodes.several else 1)
        if first.deaths < self._policy.shard_deaths:
            return None
        return f"it killed its worker {first.deaths} times, last: {how}"

    def _charged(self, worker: Worker, loss: Loss, first: Shard) -> bool:
        if loss is Loss.PREEMPTED and not worker.draining:  # an image may bring down whole nodes
            first.preemptions += 1
            return first.preemptions >= self._policy.shard_preemptions
        return loss in _CHARGED
