"""Several sources as one, each with a share of what is drawn. A small source is gone through several times before a
large one is through once; within a source every pass has every image exactly once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from typing import Any

import numpy as np

from data_engine.errors import ConfigError
from data_engine.train.data.labelled import LabelledImage, PassedOver, Undecoded, decoded
from data_engine.train.data.pool import Pool


class Mixture:
    """`TrainingData` of pools and weights. An epoch has as many entries as the pools have together."""

    def __init__(self, pools: Sequence[Pool], weights: Sequence[float]) -> None:
        """Raises ConfigError for weights that are not positive."""
        if any(weight <= 0 for weight in weights):
            raise ConfigError(f"the weights of a mixture are {list(weights)}: write numbers above 0")
        self._pools = list(pools)
        self._weights = np.array(weights, np.float64)

    def __len__(self) -> int:
        return sum(map(len, self._pools))

    def image_ids(self) -> Iterator[str]:
        return chain.from_iterable(pool.image_ids() for pool in self._pools)

    def share(self, rank: int, world: int) -> int:
        return sum(pool.share(rank, world) for pool in self._pools)

    def epoch(self, epoch: int, *, seed: int, rank: int = 0, world: int = 1, skip: int = 0) -> Iterator[LabelledImage]:
        """See `TrainingData`."""
        return decoded(self.undecoded(epoch, seed=seed, rank=rank, world=world, skip=skip))

    def undecoded(self, epoch: int, *, seed: int, rank: int = 0, world: int = 1, skip: int = 0) -> Iterator[Undecoded]:
        """See `TrainingData`. Each turn belongs to one pool and to one entry of it, so that `skip` counts turns."""
        turns = self._turns(epoch, seed, rank, world)
        starts = epoch * np.bincount(turns, minlength=len(self._pools))
        starts += np.bincount(turns[:skip], minlength=len(self._pools))
        streams = [_Passes(pool, seed, rank, world, start) for pool, start in zip(self._pools, starts, strict=True)]
        for turn in range(skip, len(turns)):
            number = int(turns[turn])
            entry = streams[number].turn()
            prefix = f"{number}:" if len(self._pools) > 1 else ""
            decode = partial(_decode, entry, prefix, turn + 1, streams[number].number)
            yield Undecoded(turn + 1, decode, entry.settle)

    def describe(self) -> dict[str, Any]:
        shares = self._weights / self._weights.sum()
        parts = [
            {"share": round(float(share), 4), **pool.describe()}
            for share, pool in zip(shares, self._pools, strict=True)
        ]
        return {"kind": "mixture", "images": len(self), "parts": parts}

    def _turns(self, epoch: int, seed: int, rank: int, world: int) -> np.ndarray:
        """The number of the pool for every entry of a rank's epoch. Pools with nothing for this rank get no turn."""
        entries = np.array([pool.share(rank, world) for pool in self._pools])
        total = int(entries.sum())
        weights = self._weights * (entries > 0)
        if not total:
            return np.empty(0, np.int64)
        bounds = np.round(np.cumsum(weights) / weights.sum() * total).astype(np.int64)
        turns = np.repeat(np.arange(len(self._pools)), np.diff(bounds, prepend=0))
        return np.random.default_rng([seed, epoch, rank, world]).permutation(turns)


class _Passes:
    """A pool's entries for a rank, pass after pass, one a turn."""

    def __init__(self, pool: Pool, seed: int, rank: int, world: int, start: int) -> None:
        self._pool = pool
        self._share = {"seed": seed, "rank": rank, "world": world}
        self._entries = pool.share(rank, world)
        self.number, self._done = divmod(int(start), self._entries) if self._entries else (0, 0)  # of the pass
        self._stream: Iterator[Undecoded] | None = None

    def turn(self) -> Undecoded:
        if self._done == self._entries:
            self.number, self._done, self._stream = self.number + 1, 0, None
        if self._stream is None:
            self._stream = self._pool.undecoded(self.number, skip=self._done, **self._share)
        self._done += 1
        return next(self._stream)


def _decode(entry: Undecoded, prefix: str, consumed: int, drawn: int) -> LabelledImage | PassedOver:
    found = entry.decode()
    if isinstance(found, PassedOver):
        return found
    return replace(found, image_id=prefix + found.image_id, consumed=consumed, drawn=drawn)
